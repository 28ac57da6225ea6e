"""What would run and what has a result, without running anything. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usdcore.ablate.locks import holder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usdcore.ablate.jobs import Job, Jobs
    from usdcore.ablate.loading import Line, Table


def listed(table: Table, jobs: Jobs, chosen: list[Job]) -> dict[str, Any]:
    """`rows`: one line for each row and seed, with the dense models that several start from before them.

    `state` says how far a run is and who works on it; `here`: whether this command would run it.
    """
    here = {job.key for job in chosen if job.state in ("begun", "not run")}
    left = [job for job in jobs.all if job.state in ("begun", "not run")]
    return {
        "ablation": table.ablation.name,
        "scale": table.scale_name,
        "rows": list(_lines(table, jobs, here)),
        "runs": len(jobs.all),
        "left": len(left),
        "here": len(here),
    }


def _lines(table: Table, jobs: Jobs, here: set[str]) -> Iterator[dict[str, Any]]:
    stems = {job.stem.key: job.stem for job in jobs.all if job.stem is not None}
    for stem in stems.values():
        needed = any(
            job.stem is not None and job.stem.key == stem.key and job.key in here and job.state == "not run"
            for job in jobs.all
        )
        is_here = needed and stem.state in ("begun", "not run")
        yield _line("(dense model that rows start from)", stem, stem.seed, is_here=is_here)
    for seed in table.seeds:
        for line in table.lines:
            job = jobs.of_row.get((line.row.name, seed))
            if job is None:
                yield {"row": line.row.name, "seed": seed, "state": _why(line), "here": "", "folder": "-"}
                continue
            is_own = job.name == line.row.name
            found = _line(line.row.name, job, seed, is_here=job.key in here and is_own)
            if not is_own:
                found["state"] += f", the run of {job.name!r}"
            yield found


def _line(name: str, job: Job, seed: int, *, is_here: bool) -> dict[str, Any]:
    other = holder(job.lock) if job.state in ("begun", "not run") else None
    state = job.state if other is None else f"running: {other}"
    return {"row": name, "seed": seed, "state": state, "here": "yes" if is_here else "", "folder": str(job.folder)}


def _why(line: Line) -> str:
    if line.missing is not None:
        return f"not here: {line.missing}"
    return "exact, needs no run"
