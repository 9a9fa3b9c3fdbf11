"""`mlxmtp serve`: a model for other programs."""

from typer import Context

from mlxmtp.cli.options import begin, takes
from mlxmtp.errors import UsageError


@takes(
    "serve",
    "model address access parallel image_tokens ... cache drafting sampling thinking yes force quiet no_color debug",
)
def serve(ctx: Context) -> None:
    """A local server with OpenAI's, Anthropic's and Ollama's protocols.

    \b
    Examples:
      mlxmtp serve
      mlxmtp serve -m e4b --port 9000
      mlxmtp serve --parallel 4
      curl localhost:8765/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'
      MLXMTP_API_KEY=$(cat key) mlxmtp serve --host 0.0.0.0

    Requests may come before the model is read: they wait. docs/server.md lists endpoints and fields. Ctrl-C ends it.
    """
    from mlxmtp.app.endpoints import without_url
    from mlxmtp.cli.resume import opener_of
    from mlxmtp.serve.server import options_of, serve

    loaded, out = begin(ctx)
    loaded = without_url(loaded)
    opener = opener_of(loaded, out)
    if not opener.here:
        raise UsageError("mlxmtp serve answers with models on this machine: name one with -m.")
    serve(opener, options_of(loaded), loaded.settings, out.line)
    if out.error_terminal:
        out.line("")  # behind the terminal's own ^C
