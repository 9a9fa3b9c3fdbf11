"""What a shell completes: names that only a look at this machine can tell."""

from __future__ import annotations


def session_ids(incomplete: str) -> list[tuple[str, str]]:
    """Ids and names of sessions that begin like that, with their titles, newest first."""
    from mlxmtp.chat.sessions import Sessions
    from mlxmtp.settings import find_places

    sessions = Sessions(find_places().sessions).listing().sessions
    named = [(one.name or one.id, one.title) for one in sessions if (one.name or one.id).startswith(incomplete)]
    return named or [(one.id, one.title) for one in sessions if one.id.startswith(incomplete)]
