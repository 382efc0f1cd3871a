"""The report: one HTML file with everything inside, the first thing to look at after a run."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pipelines.progress import say
from pipelines.report import mixture, near_duplicates, provenance, sections_curation, sections_data, sections_runs
from pipelines.report.data import Root, read_root
from pipelines.report.edits import SHOWN, read_edits
from pipelines.report.markup import Markup, duration, number, tag
from pipelines.report.media import Album
from pipelines.report.page import Section, page
from pipelines.report.runs import Run, read_run
from pipelines.samples import storage

# the page forbids itself every script but its own and every outside address; pictures, styles and clips are inside it
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
# of embedded pictures; text and charts stay below 2 MB
SAMPLES_MB, STRIPS_MB, EDITS_MB, BORDERLINE_MB, NEAR_MB = 5, 3, 4, 3, 2


def build(
    root: str,
    runs: Sequence[str] = (),
    out: str = "report.html",
    selection: str | None = None,
    edits_folder: str | None = None,
    title: str = "SAMA report",
    *,
    media: bool = True,
) -> str:
    """Write one self-contained page about a data root, training runs in their order, and edited clips.

    root: a data root; runs: run folders (stage 0 first); selection: its name, or None when there is at most one;
    media: False writes no pictures. Returns where the page is. Reads only what is on disk and changes nothing.
    InputError for whatever is not there.
    """
    began = time.monotonic()
    facts = read_root(root, selection)
    found_runs = [read_run(r) for r in runs]
    edits = read_edits(edits_folder) if edits_folder else []
    origins = provenance.find(root, facts.selection, [r.uri for r in found_runs], edits_folder)
    album = Album(SAMPLES_MB * 2**20, media)
    strips, clips = Album(STRIPS_MB * 2**20, media), Album(EDITS_MB * 2**20, media)
    sections: list[tuple[str, str, str, Markup]] = [
        ("ledger", "The ledger", "Where every sample went. Both sums must hold for every dataset.",
         sections_data.ledger(facts)),
        ("funnel", "From manifest to training", "How many samples got how far, and what stopped the others.",
         Markup(sections_data.funnel(facts) + sections_data.reasons_chart(facts))),
    ]  # fmt: skip
    sections += _curation(facts, Album(BORDERLINE_MB * 2**20, media), Album(NEAR_MB * 2**20, media))
    sections += _galleries(facts, album)
    if found_runs:
        sections += _training(found_runs, strips)
    if edits:
        shown = sections_runs.edited(edits[:SHOWN], clips)
        lead = "Source frames above, the model's edit below."
        lead += f" {SHOWN} of {len(edits)} shown." if len(edits) > SHOWN else ""
        sections.append(("edits", "Edited clips", lead, shown))
    key = (facts.kept or facts.rejected or [{}])[0].get("key")
    next_steps = provenance.commands(facts.uri, [r.uri for r in found_runs], key)
    origin = Markup(provenance.section(origins) + provenance.versions(origins) + next_steps)
    sections.append(("provenance", "Provenance", "What was run, when, by which code.", origin))
    made = _page(title, facts, found_runs, len(edits), sections)
    uri = storage.absolute(out)
    storage.write_bytes(uri, made)
    say(f"report: {uri} ({len(made) / 1e6:.1f} MB, {duration(time.monotonic() - began)})")
    return uri


def _curation(facts: Root, album: Album, twins: Album) -> list[tuple[str, str, str, Markup]]:
    found, sections = facts.curation, []
    if found.scores:
        lead = "Each score with the selection's threshold. Move one to see how many samples all of them would keep."
        sections.append(("scores", "Scores and thresholds", lead, sections_curation.what_if(found)))
    if found.borderline:
        lead = "Nearest to each threshold: kept, and rejected for that alone. Source left, target right."
        sections.append(("borderline", "Borderline", lead, sections_curation.borderline(found, album, facts.hidden)))
    if found.groups:
        lead = f"{number(found.grouped)} samples share their source footage with another; they stay in one split."
        sections.append(("footage", "Same footage", lead, sections_curation.duplicates(found)))
    if found.near.groups:
        shown = near_duplicates.section(found.near, twins, facts.hidden)
        sections.append(("duplicates", "Near-duplicates", near_duplicates.lead(found.near), shown))
    if found.failures:
        sections.append(("failures", "Failures", "What could not be looked at.", sections_curation.failures(found)))
    if found.cost:
        lead = "Seconds of work, summed over processes; a second run does only what is missing."
        sections.append(("cost", "Cost of curation", lead, sections_curation.cost(found)))
    return sections


def _galleries(facts: Root, album: Album) -> list[tuple[str, str, str, Markup]]:
    sections = []
    done = 0

    def watch() -> None:
        nonlocal done
        done += 1
        if done % 20 == 0:
            say(f"report: {done} of {len(facts.kept) + len(facts.rejected)} samples drawn")

    for rows, decision, title in (
        (facts.kept, "kept", "Kept samples"),
        (facts.rejected, "rejected", "Rejected samples"),
    ):
        if facts.selection is None:
            continue
        lead = f"{number(len(rows))} of {number(facts.decided(decision))}, taken in turn from every dataset"
        lead += "." if decision == "kept" else " and reason."
        body = sections_data.gallery(rows, album, watch, facts.hidden) if rows else tag("p", "None.", class_="quiet")
        sections.append((decision, title, lead + " Source above, target below." if rows else lead, body))
    body = sections_data.ingest_rejects(facts.ingest_rejects, facts.total("rejects"))
    sections.append(("refused", "Refused at ingest", "Rows that never became a sample, with the reason.", body))
    return sections


def _training(runs: list[Run], album: Album) -> list[tuple[str, str, str, Markup]]:
    sections = []
    shares = mixture.section(runs)
    if shares:
        sections.append(("mixture", "The mixture", "What the batches of each stage are made of.", shares))
    curves = [
        Markup(tag("h3", r.name) + tag("div", sections_runs.run_facts(r), class_="panel") + sections_runs.curves(r)
               + sections_runs.events(r))
        for r in runs
    ]  # fmt: skip
    lead = (
        "Faint: every step. Strong: the moving mean. Timesteps are drawn anew for every sample, so single steps jump."
    )
    sections.append(("training", "Training", lead, Markup("".join(curves))))
    split = sections_runs.time_split(runs)
    if split:
        lead = "wait: for data; encode: VAE, text and semantic encoders; the rest is the transformer."
        sections.append(("time", "Time", lead, split))
    strips = Markup("".join(sections_runs.strips(r, album) for r in runs))
    if strips:
        lead = "Rows of a strip: the source as the model was given it, the wanted result, the model's own."
        sections.append(("strips", "Sample strips", lead, strips))
    return sections


def _cards(facts: Root, runs: list[Run], edits: int) -> Markup:
    went_in = facts.total("index") + facts.total("rejects")
    wrong = facts.problems()
    cards = [_card("samples in", number(went_in), f"{len(facts.datasets)} datasets")]
    if facts.selection is not None:
        kept = facts.decided("kept")
        share = f"{kept / went_in:.0%} of all, {number(facts.total('heldout'))} held out" if went_in else ""
        cards.append(_card("kept", number(kept), share))
    note = f"{len(wrong)} sums do not hold" if wrong else "every sample accounted for"
    cards.append(_card("ledger", "✗" if wrong else "✓", note, "bad" if wrong else "good"))
    for run in runs:
        loss = run.loss()
        cards.append(_card(run.name, number(loss), "final loss, mean of the last tenth"))
    if runs:
        steps = " + ".join(number(r.steps) for r in runs)
        cards.append(_card("steps", number(sum(r.steps for r in runs)), steps if len(runs) > 1 else "optimizer steps"))
        seconds = sum(r.seconds for r in runs)
        cards.append(_card("training", duration(seconds), f"{sum(r.count('restart') for r in runs)} restarts"))
    if edits:
        cards.append(_card("edited clips", number(edits), "made by the trained model"))
    return tag("div", cards, class_="cards")


def _policy(facts: Root) -> str:
    """The page's one script, where it has one, is allowed by its digest."""
    return f"{POLICY}; script-src {sections_curation.script_digest()}" if facts.curation.scores else POLICY


def _card(what: str, value: str, note: str, kind: str = "") -> Markup:
    inside = (tag("span", what, class_="what"), tag("b", value), tag("span", note))
    return tag("div", *inside, class_=f"card {kind}".strip())


def _page(title: str, facts: Root, runs: list[Run], edits: int, sections: list[Section]) -> str:
    chosen = (" · selection ", tag("code", facts.selection)) if facts.selection else ()
    summary = tag("section", _cards(facts, runs, edits), id="summary")
    return page(title, _policy(facts), sections, (tag("code", facts.uri), *chosen), summary)
