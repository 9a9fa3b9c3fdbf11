"""The written form of a conversation: Gemma 4's turns, and which parts of it are learned."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.pocket.conversation import Conversation

SPECIAL = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>",
    46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>",
    50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>',
    98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>",
}  # fmt: skip
PAD, EOS, BOS, TURN_END, TOOL_RESPONSE, THOUGHT = 0, 1, 2, 106, 50, 100


def segments(conversation: Conversation) -> Iterator[tuple[str, bool]]:
    """(text, learned) in order; joined, the texts are what the chat template writes."""
    head = "<bos>"
    if conversation.thinking or conversation.system:
        think = "<|think|>\n" if conversation.thinking else ""
        head += f"<|turn>system\n{think}{conversation.system}<turn|>\n"
    last = len(conversation.turns) - 1
    for i, turn in enumerate(conversation.turns):
        yield f"{head}<|turn>user\n{turn.question.strip()}<turn|>\n<|turn>model\n", False
        thought = f"<|channel>thought\n{turn.thought}\n<channel|>" if conversation.thinking and i == last else ""
        yield f"{thought}{turn.answer.strip()}<turn|>", not conversation.thinking or i == last
        head = "\n"
