"""robots.txt as RFC 9309 reads it: groups by agent, the longest matching rule wins, allow wins a tie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

MAX_BYTES = 512_000
"""What is beyond is not read."""
MOST_SAID = 200
"""Characters of a rule that are shown."""
_SAFE = "/?:@!$&'()*+,;=-._~%"


NAME = "robots.txt"


@dataclass(frozen=True)
class Rules:
    """The rules that hold for one agent: (pattern, allow)."""

    rules: tuple[tuple[str, bool], ...] = ()
    is_there: bool = False
    """Whether there is a file."""

    def allows(self, path: str) -> bool:
        """Whether the agent may fetch `path` (path and query, as sent)."""
        return self.verdict(path)[0]

    def verdict(self, path: str) -> tuple[bool, str]:
        """(whether the agent may fetch `path`, what the file says of it)."""
        best, allowed, rule = -1, True, ""
        wanted = _normal(path or "/") if self.rules else ""
        for pattern, allow in self.rules:
            if len(pattern) < best or (len(pattern) == best and not allow):
                continue
            if _matches(pattern, wanted):
                best, allowed, rule = len(pattern), allow, pattern
        if not allowed:
            return False, f"{NAME}: Disallow: {rule[:MOST_SAID]}"
        return True, f"{NAME}: allowed" if self.is_there else f"{NAME}: none"


def parse(text: str, agent: str) -> Rules:
    """The rules of every group that names `agent`, else those of the groups for `*`, else none."""
    groups: dict[str, list[tuple[str, bool]]] = {}
    names: list[str] = []
    in_rules = False
    for line in text.lstrip("\ufeff").splitlines():
        field, colon, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        field = field.lower()
        if not colon:
            continue
        if field == "user-agent":
            names = [_token(value)] if in_rules else [*names, _token(value)]
            in_rules = False
            groups.setdefault(names[-1], [])
        elif field in ("allow", "disallow"):
            in_rules = True
            for name in names if value else ():
                groups[name].append((_normal(value), field == "allow"))
    return Rules(tuple(groups.get(agent.lower(), groups.get("*", []))), is_there=True)


def _token(value: str) -> str:
    """The product token of a user-agent line: `*`, or what stands before version and comments."""
    return "*" if value.startswith("*") else re.split(r"[/\s]", value, maxsplit=1)[0].lower()


def _normal(path: str) -> str:
    """One spelling for each path: percent-encoding decoded and done again."""
    kept = re.sub("%(2[fF]|3[fF]|25|24|2[aA])", lambda found: f"%25{found[1].upper()}", path)
    return quote(unquote_to_bytes(kept), safe=_SAFE)


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern of robots.txt's kind, as it was written, covers a path, as it was sent."""
    return _matches(_normal(pattern), _normal(path or "/"))


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for anything, a final `$` for the end; matched piece by piece, in linear time."""
    ends = pattern.endswith("$")
    pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(pieces[0]):
        return False
    at = len(pieces[0])
    for piece in pieces[1:-1]:
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    if len(pieces) == 1:
        return not ends or at == len(path)
    if ends:
        return len(path) - len(pieces[-1]) >= at and path.endswith(pieces[-1])
    return path.find(pieces[-1], at) >= 0
