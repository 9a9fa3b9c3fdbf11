from __future__ import annotations

import pytest

from mlxmtp.cli.terminal.fences import FirstFence, all_fences, open_fence


def first(text: str, size: int) -> str | None:
    fence = FirstFence()
    for at in range(0, len(text), size):
        fence.feed(text[at : at + size])
    fence.finish()
    return fence.block


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("Here:\n```python\nx = 1\n\ny = 2\n```\nand\n```\nz\n```\n", "x = 1\n\ny = 2\n"),
        ("```\nno newline at the end\n```", "no newline at the end\n"),
        ("~~~ sh\necho '```'\n~~~\n", "echo '```'\n"),
        ("````md\n```\ninner\n```\n````\n", "```\ninner\n```\n"),
        ("1. Step:\n   ```sh\n   ls\n     -l\n   ```\n", "ls\n  -l\n"),
        ("```\nnever closed\n", "never closed\n"),
        ("```md\n# A\n```sh\nls\n```\nb\n```\nc\n", "# A\n```sh\nls\n```\nb\n"),
        ("~~~\n~~~ a\n~~~~ b\nx\n~~~\n~~~\ny\n~~~\n", "~~~ a\n~~~~ b\nx\n~~~\n~~~\ny\n"),
        ("```sh\nnever closed\n```py\nx\n```\nAnd so on.\n", "never closed\n```py\nx\n"),
        ("```sh\nls\n```\nThen:\n```sh\ncd\n```\n", "ls\n"),
        ("> ```sh\n> ls\n>   -l\n> ```\n> done\n", "ls\n  -l\n"),
        ("> > - ```\n> >   > x\n> >\n> >   y\n> after\n", "> x\n\ny\n"),
        ("```\n> ```\n```\n", "> ```\n"),
        ("```\n```\n", ""),
        ("```py\nx\n    ```\n    a\n    ```\ny\n```\nz\n", "x\n    ```\n    a\n    ```\ny\n"),
        ("```py\nx\n    ```sh\n    a\n\t```\ny\n```\n```sh\nz\n", "x\n    ```sh\n    a\n\t```\ny\n"),
        ("```py\nx\n   ```\ny\n", "x\n"),
        ("- Step:\n\n      ```sh\n      ls\n      ```\n", "ls\n"),
        ("- two:\n\n\t\t```sh\n\t\tls\n\t\t```\n\nThen:\n\nrm x\n", "\t\tls\n"),
        ("no block, only `code`", None),
        ("```inline``` is none", None),
        ("", None),
    ],
)
def test_the_first_block(text: str, block: str | None, size: int) -> None:
    assert first(text, size) == block


def test_it_is_known_as_soon_as_the_block_is_closed() -> None:
    fence = FirstFence()
    fence.feed("```\nx\n``")
    assert fence.block is None
    fence.feed("`\nmore")
    assert fence.block == "x\n"


def test_all_blocks_and_the_open_one() -> None:
    text = "a\n```sh\nls\n```\nb\n~~~\ndf\n~~~\n```python\nx = 1\n"
    assert all_fences(text) == ["ls\n", "df\n", "x = 1\n"]
    assert open_fence(text) == "```python"
    assert open_fence(text + "```\n") == ""
    assert open_fence("no block") == ""
