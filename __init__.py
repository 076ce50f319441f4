"""Stands for the package inside where a clone's own folder is imported as dspark_mlx.

A clone is named as the package is. From the folder around it Python would take it for an empty
namespace package, which comes before an editable install.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_inside = Path(__file__).parent / "dspark_mlx" / "__init__.py"
_found = [str(_inside.parent)]
_spec = spec_from_file_location(__name__, _inside, submodule_search_locations=_found)
assert _spec is not None and _spec.loader is not None
sys.modules[__name__] = module_from_spec(_spec)
_spec.loader.exec_module(sys.modules[__name__])
