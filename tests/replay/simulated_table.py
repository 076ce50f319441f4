"""The tables of docs/schedulers.md: `python tests/replay/simulated_table.py --tokens 400`."""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import mean

from dspark_mlx.replay.grid import by_least, grid, grid_table
from dspark_mlx.replay.report import SHIPPED
from dspark_mlx.schedulers.speed_profile import read_profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--taught", type=int, default=0, help="earlier requests of the pair")
    parser.add_argument("--scheduler", default="auto")
    parser.add_argument("--profiles", nargs="*", default=[])
    parser.add_argument("--processes", type=int, help="at once; as many as cores if not given")
    arguments = parser.parse_args()
    shipped = {path.stem: read_profile(path) for path in sorted(SHIPPED.glob("*.json"))}
    profiles = {name: shipped[name] for name in arguments.profiles or shipped}
    of_profiles = partial(
        grid,
        tokens=arguments.tokens,
        texts=arguments.texts,
        taught=arguments.taught,
        scheduler=arguments.scheduler,
    )
    with ProcessPoolExecutor(arguments.processes) as pool:
        parts = pool.map(of_profiles, ({name: profile} for name, profile in profiles.items()))
        cells = [cell for part in parts for cell in part]
    ratios = [cell.of_best for cell in cells]
    print(grid_table(cells))
    print(f"{len(cells)} cells of {arguments.texts} texts of {arguments.tokens} tokens")
    print(f"mean {mean(ratios):.3f}, least {min(ratios):.3f}")
    print(f"below 0.95: {sum(r < 0.95 for r in ratios)}, 0.93: {sum(r < 0.93 for r in ratios)}")
    print(f"deciding {1e6 * mean(cell.deciding_seconds for cell in cells):.0f} us a round")
    for cell in by_least(cells)[:12]:
        print(cell)


if __name__ == "__main__":
    main()
