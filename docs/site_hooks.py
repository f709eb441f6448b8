"""Hooks of the documentation's site (mkdocs.yml): links out of docs/, and names in docstrings."""

import logging
import posixpath
import re
from pathlib import Path

logger = logging.getLogger("mkdocs.hooks.site_hooks")

ROOT = Path(__file__).resolve().parents[1]
# Outside of code blocks and spans.
_CODE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>\.\./[^)\s]+)\)")
_NAME = re.compile(r"\[<code>~?(?P<path>[\w.]+)</code>\]")


def on_config(config):
    """Leave out of the navigation what is not written yet."""
    config.nav = [
        entry for entry in config.nav if not isinstance(page := next(iter(entry.values())), str) or _exists(page)
    ]
    return config


def _exists(page: str) -> bool:
    return (ROOT / "docs" / page).is_file()


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Turn links to files of the repository outside of docs/ into links to the repository, if its address is known.

    A file that does not exist is a warning, which ends a strict build. Without `repo_url` only the link's text is left.
    """

    def replace(match: re.Match) -> str:
        target, _, anchor = match["target"].partition("#")
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
        if not (ROOT / path).exists():
            logger.warning("%s links to %s, which does not exist", page.file.src_uri, path)
        if not config.repo_url:
            return match["text"]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{match['text']}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{f'#{anchor}' if anchor else ''})"

    return _LINK.sub(replace, markdown)


def on_page_content(html: str, page, config, files) -> str:
    """Show names that docstrings refer to as in transformers' documentation: [`~hf_vla.inference.policy.Policy`] as Policy."""
    return _NAME.sub(lambda match: f"<code>{match['path'].rpartition('.')[2]}</code>", html)
