"""A speed profile as text."""

from __future__ import annotations

from .speed_profile import SpeedProfile


def profile_table(profile: SpeedProfile) -> str:
    """The profile as text, one line per context; `*` marks widths dearer than a larger width."""
    lines = [profile.name, f"on {profile.device}; milliseconds of one request"]
    if profile.quick:
        lines.append("measured quickly: a few widths at one context, the others are interpolated")
    widths = "".join(f"{width:>8} " for width in range(1, profile.widths + 1))
    lines += [f"{'':>25}  rows verified", f"{'context':>9}{'draft':>8}{'plain':>8}  {widths}"]
    rows = zip(profile.contexts, profile.draft, profile.plain, profile.verify, strict=True)
    for context, draft, plain, verify in rows:
        lines.append(f"{context:>9}{draft:>8.2f}{plain:>8.2f}  {_marked(verify)}")
    if any(profile.sampling):
        draft, first, further = profile.sampling
        added = f"a draft {draft:.2f}, a row {first:.2f}, each further row {further:.2f}"
        lines.append(f"sampling adds to {added}")
    if any(profile.rounds):
        plain, drafted = profile.rounds
        lines.append(f"rounds add to a plain step {plain:.2f}, to a drafted round {drafted:.2f}")
    if profile.batches:
        middle = profile.contexts[len(profile.contexts) // 2]
        lines.append(f"several requests at context {middle}")
        for requests, verify in sorted(profile.batches.items()):
            lines.append(f"{requests:>9}{'':>16}  {_marked(verify)}")
    if any("*" in line for line in lines[1:]):
        lines.append("* run padded to a wider forward, which is cheaper")
    return "\n".join(line.rstrip() for line in lines)


def _marked(verify: tuple[float, ...]) -> str:
    """Times of widths 1..n as columns, `*` after each that is dearer than a larger width."""
    cheapest = [min(verify[i:]) for i in range(len(verify))]
    pairs = zip(verify, cheapest, strict=True)
    return "".join(f"{ms:>8.2f}{'*' if least < ms else ' '}" for ms, least in pairs)
