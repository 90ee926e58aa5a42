"""Plant bugs in the arithmetic of the ops, one at a time, and see whether the tests notice.

    python tests/mutation/mutate_ops.py [--jobs 2] [--only batch_norm softmax] [--all] [--list]

A mutant is one change of one expression: a sign, an operator, a constant, a comparison, a condition, a reduction, a
function. Argument checks and messages are left alone: their tests match wording. Each mutant runs the tests of its
file in a process of its own and is killed by the first that fails. What survives must be equivalent, and
`_equivalent.py` says why.

The results are kept in `result.json`, file by file with a hash of its code, and written out in `result.md`. Only files
whose code has changed since are run again, and the survivors without an argument; ``--all`` runs every one. A test
fails when a result is out of date, when a survivor has no argument, and when the test that killed a mutant is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.mutation._equivalent import EQUIVALENT
from tests.mutation._mutants import FILES, LEFT_OUT, fingerprint, labels, mutants, source_of

RESULT = Path(__file__).with_name("result.json")
PAGE = Path(__file__).with_name("result.md")


def load() -> dict[str, Any]:
    """The results so far, file by file."""
    return dict(json.loads(RESULT.read_text())) if RESULT.exists() else {}


def out_of_date(results: dict[str, Any]) -> list[str]:
    """Files whose code is not what the results are of, or whose mutants are others by now."""
    return [
        name
        for name in FILES
        if name not in results
        or results[name]["code"] != fingerprint(source_of(name))
        or len(results[name]["killers"]) != len(labels(name))  # their wording depends on the version of Python
    ]


def survivors(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(file, what was changed) of every mutant that no test killed."""
    return [(name, what) for name in results for what, killer in results[name]["killers"].items() if killer is None]


def unargued(results: dict[str, Any], but: list[str]) -> dict[str, set[str]]:
    """The survivors that have no argument, by file."""
    found: dict[str, set[str]] = {}
    for name, what in survivors(results):
        if name not in but and what not in EQUIVALENT.get(name, {}):
            found.setdefault(name, set()).add(what)
    return found


def report(results: dict[str, Any]) -> str:
    """The results as a page."""
    lived = survivors(results)
    still_open = sum(map(len, unargued(results, []).values()))
    total = sum(len(results[name]["killers"]) for name in results)
    minutes = sum(results[name]["seconds"] for name in results) / 60
    rows = []
    for name in FILES:
        killers = results.get(name, {"killers": {}})["killers"]
        alive = sum(killer is None for killer in killers.values())
        rows.append(f"| `{name}` | {len(killers)} | {len(killers) - alive} | {alive} |")
    lines = [
        "# Mutants of the ops",
        "",
        f"Written by `python tests/mutation/mutate_ops.py`. {total} mutants: {total - len(lived)} killed, "
        f"{len(lived) - still_open} equivalent, {still_open} open; {minutes:.0f} minutes in all.",
        "",
        "| file | mutants | killed | survived |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Survivors, and why each is the same program to a caller",
        "",
    ]
    for name in FILES:
        mine = [what for file, what in lived if file == name]
        lines += [f"### `{name}`", ""] if mine else []
        lines += [f"- `{what}`: {EQUIVALENT.get(name, {}).get(what, '**open**')}" for what in mine]
        lines += [""] if mine else []
    lines += ["## Files left out", "", *(f"- `{name}`: {why}." for name, why in LEFT_OUT.items())]
    return "\n".join(lines) + "\n"


def write(results: dict[str, Any]) -> None:
    """Write both forms of the results, the files in their order."""
    ordered = {name: results[name] for name in FILES if name in results}
    RESULT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    PAGE.write_text(report(ordered))


def main() -> int:
    """Run what is out of date, write both results, and say what is open."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", choices=list(FILES), help="these files, out of date or not")
    parser.add_argument("--all", action="store_true", help="every file, out of date or not")
    parser.add_argument("--match", help="only mutants whose description contains this; nothing is written")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    arguments = parser.parse_args()
    results = load()
    stale = out_of_date(results)
    names = arguments.only or (list(FILES) if arguments.all or arguments.list else [*stale, *unargued(results, stale)])
    work = {name: [m for m in mutants(name) if (arguments.match or "") in m.label] for name in names}
    if not (arguments.only or arguments.all or arguments.list):
        again = unargued(results, stale)
        work |= {name: [m for m in work[name] if m.label in again[name]] for name in again}
    if arguments.list:
        for name, found in work.items():
            print("\n".join(f"{name}: {mutant.label}" for mutant in found))
        print(sum(map(len, work.values())), "mutants")
        return 0
    from tests.mutation._run import Outcome, Server

    work = dict(sorted(work.items(), key=lambda item: len(item[1])))  # each file's results are kept as they come
    before = {name: fingerprint(source_of(name)) for name in names}

    def keep(name: str, outcome: Outcome) -> None:
        if arguments.match:
            return
        old = results[name] if len(outcome.killers) < len(labels(name)) else {"seconds": 0, "killers": {}}
        results[name] = {
            "code": before[name],
            "seconds": old["seconds"] + round(outcome.seconds),
            "killers": old["killers"] | outcome.killers,
        }
        write(results)

    server = Server(arguments.jobs, work, keep)
    server.run()
    if server.broken:
        print("the tests fail without any mutant:", *server.broken, sep="\n")
        return 2
    write(results)  # with the arguments as they are now, even where nothing was run
    print(report(results))
    return int("**open**" in report(results) or bool(out_of_date(results)))


if __name__ == "__main__":
    raise SystemExit(main())
