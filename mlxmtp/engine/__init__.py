"""Messages in, `Text | Thinking | End` out: the text side around the decoder."""
