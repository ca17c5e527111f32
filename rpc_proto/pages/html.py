"""HTML pages with escaped text, one style, and content that updates itself."""

import html
from base64 import b64encode
from hashlib import sha256
from typing import Any

from rpc_proto.http.messages import Response
from rpc_proto.texts import printable

__all__ = ["Html", "card", "page", "tag", "tile"]

REFRESH = 2  # seconds

_VOID = ("br", "link", "meta")

STYLE = """
:root { color-scheme: light dark; --back: #f5f6f8; --card: #fff; --text: #1b2430; --soft: #5d6876;
  --line: #e2e6eb; --tint: #eef1f5; --main: #2b66d9; --good: #17734a; --bad: #bb3326;
  --queue: #d99a2b; --handler: #2b66d9; --send: #8a5bd1; }
@media (prefers-color-scheme: dark) {
  :root { --back: #10141b; --card: #181e28; --text: #e3e8ef; --soft: #95a1b2; --line: #2a3340;
    --tint: #212936; --main: #78a8ff; --good: #5cc793; --bad: #ff8a7a;
    --queue: #e0ac52; --handler: #5d8ff0; --send: #a983ea; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main, footer { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1.2rem;
  padding-top: 1.4rem; min-height: 3.9rem; }
h1 { font-size: 1.3rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1rem; margin: 1.9rem 0 .6rem; overflow-wrap: anywhere; }
h3 { font-size: .95rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; }
a { color: var(--main); }
code, .code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; font-size: .86em; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.small { font-size: .86rem; }
.bad { color: var(--bad); }
.number { font-variant-numeric: tabular-nums; }
.pill { display: inline-block; padding: .05rem .6rem; border-radius: 1rem; font-size: .82rem;
  background: var(--card); border: 1px solid var(--line); white-space: nowrap; }
.pill.good { color: var(--good); }
.pill.bad { color: var(--bad); font-weight: 600; }
#rate { display: flex; align-items: center; gap: .7rem; margin-left: auto; }
#rate[hidden] { display: none; }
#rate b { font-size: 1.15rem; }
#rate svg { width: 9rem; height: 2.2rem; fill: none; stroke: var(--main); stroke-width: 1.6;
  stroke-linejoin: round; }
#rate polyline { vector-effect: non-scaling-stroke; }
#lost { display: none; color: var(--bad); font-weight: 600; width: 100%; margin: 0; }
.lost #lost { display: block; }
.lost main { opacity: .5; }
.tiles { display: grid; gap: .75rem; margin: 1rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.6rem, 1fr)); }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tile { padding: .65rem .9rem .7rem; }
.tile dt { color: var(--soft); font-size: .82rem; }
.tile dd { margin: 0; }
.tile .value { font-size: 1.45rem; line-height: 1.3; font-weight: 600; }
.card { margin: .6rem 0; }
.scroll { overflow-x: auto; }
.long { max-height: 25rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; }
th { font-size: .78rem; font-weight: 500; color: var(--soft); text-align: left; }
th, td { padding: .45rem .95rem; vertical-align: top; }
td { border-top: 1px solid var(--line); unicode-bidi: isolate; }
table > tbody:first-child > tr:first-child > td { border-top: 0; }
.group td { background: var(--tint); }
th.number, td.number { text-align: right; white-space: nowrap; width: 1%; }
td.wide { min-width: 12rem; overflow-wrap: anywhere; }
.bar { display: block; width: 100%; min-width: 8rem; height: .5rem; margin: .5rem 0 .25rem; }
.key { font-size: .86rem; font-weight: 400; margin-left: .6rem; }
.bar.age { height: .3rem; margin: .3rem 0 .2rem; border-radius: .15rem; background: var(--line); }
.spent { fill: var(--main); }
.late { fill: var(--bad); }
a.pill { color: inherit; text-decoration: none; max-width: 100%; overflow: hidden;
  text-overflow: ellipsis; vertical-align: bottom; }
a.pill:hover, a.pill:focus { border-color: var(--main); }
.queue { fill: var(--queue); color: var(--queue); }
.handler { fill: var(--handler); color: var(--handler); }
.send { fill: var(--send); color: var(--send); }
.limits { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr));
  gap: .15rem 2.5rem; margin: 0; padding: .7rem .95rem; }
.limits div { display: flex; justify-content: space-between; gap: 1rem; }
.limits dd { margin: 0; }
footer { padding-top: 1.6rem; padding-bottom: 2.4rem; }
@media (max-width: 46rem) {
  header, main, footer { padding-left: .8rem; padding-right: .8rem; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(8.4rem, 1fr)); gap: .5rem; }
  #rate { margin-left: 0; }
  thead { display: none; }
  tr { display: flex; flex-wrap: wrap; gap: 0 1.1rem; padding: .5rem .95rem;
    border-top: 1px solid var(--line); }
  table > :first-child > tr:first-child, thead + tbody > tr:first-child { border-top: 0; }
  tr.group { background: var(--tint); }
  td { border: 0; padding: .1rem 0; }
  td.wide { flex: 1 0 100%; min-width: 0; }
  td.number { width: auto; text-align: left; }
  td[data-name]::before { content: attr(data-name) " "; color: var(--soft); font-size: .78rem; }
}
"""

SCRIPT = """
"use strict";
const seen = [];
let last;
function renew(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  const here = [...old.childNodes], there = [...fresh.childNodes];
  if (old.nodeName !== fresh.nodeName || here.length !== there.length) {
    old.replaceWith(fresh);
  } else if (old.nodeType === Node.TEXT_NODE) {
    old.data = fresh.data;
  } else {
    for (const { name, value } of fresh.attributes) old.setAttribute(name, value);
    here.forEach((child, index) => renew(child, there[index]));
  }
}
function showRate() {
  const { calls, uptime } = document.querySelector("main").dataset;
  const next = { calls: Number(calls), uptime: Number(uptime) };
  if (last && next.uptime > last.uptime) {
    seen.push((next.calls - last.calls) / (next.uptime - last.uptime));
    if (seen.length > 60) seen.shift();
    const top = Math.max(1, ...seen), rate = seen[seen.length - 1];
    const line = seen.map((value, index) =>
      `${2 * (60 - seen.length + index)},${31 - 30 * value / top}`);
    document.querySelector("#rate polyline").setAttribute("points", line.join(" "));
    document.querySelector("#rate b").textContent =
      rate.toLocaleString("en", { maximumFractionDigits: rate < 10 ? 1 : 0 });
    document.querySelector("#rate").hidden = false;
  } else if (last && next.uptime < last.uptime) {
    seen.length = 0;
  }
  last = next;
}
async function refresh() {
  if (!document.hidden) {
    try {
      const signal = AbortSignal.timeout(10000);
      const response = await fetch(location.href, { cache: "no-store", signal });
      if (!response.ok) throw new Error(response.status);
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      renew(document.querySelector("main"), page.querySelector("main"));
      document.body.classList.remove("lost");
      showRate();
    } catch {
      document.body.classList.add("lost");
    }
  }
  setTimeout(refresh, REFRESH);
}
showRate();
setTimeout(refresh, REFRESH);
""".replace("REFRESH", str(1000 * REFRESH))

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M2 5h9M8 2l3 3-3 3M14 11H5M8 8l-3 3 3 3' fill='none' stroke='%232b66d9' "
    "stroke-width='1.8'/%3E%3C/svg%3E"
)


def _source(text: str) -> str:
    """Return what allows just this text in a Content-Security-Policy (CSP 3, 2.3.1)."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_HEADERS = (
    (
        "Content-Security-Policy",
        (
            f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'"
        ),
    ),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Html(str):
    """Text that is HTML already; any other is escaped when it becomes part of a page."""

    __slots__ = ()


def tag(name: str, /, *content: Any, **attributes: Any) -> Html:
    """Return an element; a "_" in the name of an attribute is "-", and one at its end nothing."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(value)}"'
        for key, value in attributes.items()
    )
    if name in _VOID:
        return Html(f"<{name}{shown}>")
    inner = "".join(part if isinstance(part, Html) else _escape(part) for part in content)
    return Html(f"<{name}{shown}>{inner}</{name}>")


def _escape(value: Any) -> str:
    return html.escape(printable(str(value), "\n\t"))


def tile(name: str, value: Any, below: str) -> Html:
    """Return one of the numbers at the top, for a `dl` of class "tiles"."""
    return tag(
        "div",
        tag("dt", name),
        tag("dd", value, class_="value number"),
        tag("dd", below, class_="soft small number"),
        class_="tile",
    )


def card(content: Html, kind: str = "") -> Html:
    """Return a frame, in which what is too wide can be scrolled."""
    return tag("div", content, class_=f"card scroll {kind}")


def page(title: str, header: Html, main: Html, footer: Html) -> Response:
    """Return a page that renews its `main` every two seconds; nothing foreign in it can run.

    `main` is an element of that name. If it has `data-calls` and `data-uptime`, the script shows
    how fast the first one grows in what `rate` returned.
    """
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href=_ICON),
        tag("noscript", tag("meta", http_equiv="refresh", content=REFRESH)),
        tag("style", Html(STYLE)),
    )
    body = (header, main, footer, tag("script", Html(SCRIPT)))
    text = tag("html", tag("head", *head), tag("body", *body), lang="en")
    return Response.html(f"<!DOCTYPE html>{text}", headers=_HEADERS)
