"""The store as a whole, after its buckets are built: one schema a table, plans, problems."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa

from analysis.collecting.bucket import Built, runs_table
from analysis.collecting.discovery import Discovery, below, planned_run_id
from analysis.collecting.runrecord import planned_row, read_plan
from analysis.parquet.columns import Kind, conform, join_schemas
from analysis.parquet.manifest import PLANNED, RUNS, Manifest, Part, Stamp
from analysis.parquet.parts import part_file, read_part, read_problems, write_part
from analysis.parquet.problems import Problem


def planned_rows(
    plans: Mapping[str, Stamp], present: Collection[str]
) -> tuple[list[dict[str, object]], list[Problem]]:
    """Return the rows of the runs that have no directory yet, and what is wrong with the plans.

    Args:
        plans: by absolute path of the plan.json.
        present: absolute paths of the run directories that exist.
    """
    rows: dict[str, dict[str, object]] = {}
    problems = []
    for path in sorted(plans):
        sweep_dir = os.path.dirname(os.path.dirname(path))
        try:
            plan = read_plan(path)
        except ValueError as error:
            problems.append(Problem(None, path, None, "plan", str(error)))
            continue
        for planned in plan["runs"]:
            name = planned.get("directory") if isinstance(planned, dict) else None
            directory = os.path.normpath(os.path.join(sweep_dir, str(name)))
            if not isinstance(name, str) or not below(directory, [sweep_dir]):
                detail = "a run has no directory inside the sweep"
                problems.append(Problem(None, path, None, "plan", detail))
                continue
            if directory not in present:
                run = planned_run_id(directory, sweep_dir)
                rows[run] = planned_row(run, directory, plan.get("sweep"), planned)
    return [rows[run] for run in sorted(rows)], problems


def planned_part(store: Path, rows: list[dict[str, object]], generation: int) -> Built:
    """Write the rows of the planned runs as a part of their own, if there are any."""
    result = Built()
    if rows:
        table, kinds = runs_table(rows)
        part = Part(part_file(RUNS, PLANNED, generation), len(rows), PLANNED)
        write_part(store / part.file, _without_nulls(table, kinds))
        result.parts, result.schemas = {RUNS: [part]}, {RUNS: kinds}
    return result


def _without_nulls(table: pa.Table, kinds: dict[str, Kind]) -> pa.Table:
    return table.select([name for name, kind in kinds.items() if kind != "null"])


def assemble(
    store: Path, new: Manifest, old: Manifest, kept: dict[str, list[Part]], built: list[Built]
) -> None:
    """List the live parts under one schema a table; rewrite those whose types it changes."""
    tables = {*old.schemas, *(table for result in built for table in result.schemas)}
    for table in sorted(tables):
        schemas = [old.schemas.get(table, {}), *(b.schemas.get(table, {}) for b in built)]
        schema = new.schemas[table] = join_schemas(schemas)
        parts = []
        for result, have in [(None, schemas[0]), *zip(built, schemas[1:], strict=True)]:
            mine = kept.get(table, []) if result is None else result.parts.get(table, [])
            stale = {
                n: k
                for n, k in have.items()
                if schema[n] != k and k != "null" and (k, schema[n]) != ("json", "mixed")
            }
            parts += [_retyped(store, p, stale, schema, new.generation) for p in mine]
        if parts or table == RUNS:
            new.parts[table] = sorted(parts, key=lambda part: part.bucket)
        else:
            del new.schemas[table]


def _retyped(
    store: Path, part: Part, stale: dict[str, Kind], schema: dict[str, Kind], generation: int
) -> Part:
    if not stale:
        return part
    table = read_part(store / part.file)
    if not stale.keys() & set(table.column_names):
        return part
    name = part.file.replace(".parquet", f"-t{generation}.parquet")
    have = {n: stale.get(n, schema[n]) for n in table.column_names}
    write_part(store / name, conform(table, have, {n: schema[n] for n in have}))
    return Part(name, part.rows, part.bucket)


def remaining_problems(
    store: Path, old: Manifest, built: list[Built], found: Discovery, new: Manifest
) -> list[Problem]:
    """Return the problems of this collect, and the earlier ones of runs that it did not read."""
    read = {run for result in built for run in result.sources}
    restarted = {run for result in built for run in result.restarted}
    problems = []
    for row in read_problems(store).to_pylist() if old.problems_file else []:
        problem = Problem(**row)
        current = problem.run not in read or (
            problem.kind == "line" and problem.run not in restarted
        )
        if problem.run in new.sources and current:
            problems.append(problem)
    problems += [p for result in built for p in result.problems]
    problems += [Problem(None, path, None, "unreadable", why) for path, why in found.unreadable]
    for table, schema in new.schemas.items():
        for name, kind in schema.items():
            if kind == "mixed":
                detail = f"{table}: {name} has values of several types; kept as JSON text"
                problems.append(Problem(None, None, None, "type", detail))
    return sorted(problems, key=lambda p: (p.run or "", p.file or "", p.offset or 0))
