"""The site: the pages of this folder as they are, and a reference from docstrings. ``make docs`` copies and builds it.

Nothing is executed here: the pages' code is run by tests/test_docs.py, that of docstrings by pytest's doctests.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import xfn
from xfn.parts import catalogue

project, version, copyright = "xfn", xfn.__version__, "the authors of xfn"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme, html_title, root_doc = "furo", f"xfn {version}", "README"
myst_heading_anchors = 4
autosummary_generate = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

INSIDE = {"info", "kernels", "ops"}
"""Modules of which nothing is public by their own name."""


def modules() -> Iterator[str]:
    """All public modules, those above before those below; parts are on the pages of their folders."""
    yield "xfn"
    yield "xfn.residual"
    for found in pkgutil.walk_packages(xfn.__path__, "xfn."):
        _, room, *inner = found.name.split(".")
        deep = room == "compat" or (room == "parts" and found.ispkg)
        if "._" not in found.name and room not in INSIDE and (deep or not inner):
            yield found.name


def public(module: ModuleType) -> dict[str, Any]:
    """What a module defines, or imports as itself; of a folder of parts, the parts, by their paths in it."""
    if module.__name__.startswith("xfn.parts."):
        return {f"{c.__module__.rpartition('.')[2]}.{c.__name__}": c for c in catalogue(module).values()}
    body = ast.parse(Path(str(module.__file__)).read_text()).body
    imports = [alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    passed = {alias.name for alias in imports if alias.asname == alias.name}
    things = {n: t for n, t in vars(module).items() if inspect.isfunction(t) or inspect.isclass(t)}
    own = {n for n, t in things.items() if t.__module__ == module.__name__ and n[0] != "_"}
    return {n: t for n, t in things.items() if n in passed | own}


def found(title: str) -> ModuleType:
    """A public module, which may be one of ``xfn.ops`` that the package passes on."""
    return getattr(xfn, title.partition(".")[2], None) or importlib.import_module(title)


def write_reference(app: Any) -> None:
    """A page a module that has anything of its own, with what each of its files says; what several modules have is on
    the page of the first."""
    folder = Path(app.srcdir, "api")
    folder.mkdir(exist_ok=True)
    home: dict[int, str] = {}
    for title in modules():
        module = found(title)
        things = public(module)
        for name, thing in sorted(things.items(), key=lambda item: item[0] != item[1].__name__):
            home.setdefault(id(thing), f"{title}.{name}")
        also = [f":obj:`{n} <{home[id(t)]}>`" for n, t in things.items() if home[id(t)] != f"{title}.{n}"]
        own = {n: t for n, t in things.items() if home[id(t)] == f"{title}.{n}"}
        if not own:
            continue

        page = [title, "=" * len(title), ""]
        page += [f".. automodule:: {module.__name__}", *["   :no-index:"] * (title in home.values()), ""]
        page += [f".. currentmodule:: {title}", ""]
        page += [f"Also here: {', '.join(also)}.", ""] if also else []
        page += [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in own), ""]
        for file in dict.fromkeys(thing.__module__ for thing in own.values()):
            if file != module.__name__:
                last = file.rpartition(".")[2].strip("_")
                page += [last, "-" * len(last), ""]
                page += [] if "._" in file else [f".. automodule:: {file}", "   :no-index:", ""]
            for name in (name for name, thing in own.items() if thing.__module__ == file):
                kind = ["autoclass", "   :members:"] if inspect.isclass(own[name]) else ["autofunction"]
                page += [f".. {kind[0]}:: {title}.{name}", *kind[1:], ""]
        (folder / f"{title}.rst").write_text("\n".join(page))


def list_pages(app: Any, page: str, source: list[str]) -> None:
    """The table of contents of the entry page is its links, section by section; that of the reference, its modules. Of
    links that leave the folder, their text is left."""
    above = "../" * (page.count("/") + 1)
    source[0] = re.sub(rf"\[([^]]*)\]\({re.escape(above)}[^)]*\)", r"\1", source[0])
    if page == "README":
        for section in re.split(r"^(?=## )", source[0], flags=re.MULTILINE)[1:]:
            caption = section.partition("\n")[0][3:]
            pages = re.findall(r"^- \[.*?\]\((.*?)\.md\)", section, re.MULTILINE)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
    if page == "api":
        pages = [f"api/{title}" for title in modules() if Path(app.srcdir, "api", f"{title}.rst").exists()]
        source[0] += "\n```{toctree}\n:maxdepth: 1\n\n" + "\n".join(pages) + "\n```\n"


def keep_formulas(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """What is indented behind a blank line of a docstring is a formula or a drawing, and stays as it is; names that
    share a description are one name."""
    kept: list[str] = []
    above, inside = 0, 0  # how far the last line was indented, and the formula that it was in
    for before, line in zip(["", *lines], lines, strict=False):
        deep = len(line) - len(line.lstrip())
        if line:
            inside = inside if deep >= inside else 0
            if not inside and not before and deep > above:
                kept += [" " * above + "::", ""]
                inside = deep
            above = deep
        kept.append(re.sub(r"^ +([a-z]\w*, )+\w+: ", lambda names: names[0].replace(", ", ","), line))
    lines[:] = kept


def setup(app: Any) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", list_pages)
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)
