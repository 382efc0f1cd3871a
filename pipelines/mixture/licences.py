"""The licence gate: which samples a mixture may train on. Not legal advice; it obeys what the index says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sama.errors import InputError

# Licences (SPDX ids, lower case) that allow commercial use and adapted works.
COMMERCIAL = {
    "0bsd", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "isc", "mit", "mit-0", "odc-by-1.0", "pddl-1.0", "unlicense", "licenseref-public-domain",
}  # fmt: skip
# Research may use what is non-commercial or of unknown licence (the plan's summary says how much), not this.
NO_RESEARCH = {"licenseref-all-rights-reserved", "licenseref-proprietary"}


def allowed(license_id: str | None, policy: str | Sequence[str]) -> bool:
    """Whether a sample under this licence may be trained on. policy: research, commercial or a list of SPDX ids."""
    name = (license_id or "unknown").lower()
    if policy == "research":
        return name not in NO_RESEARCH
    if policy == "commercial":
        return name in COMMERCIAL
    return name in {str(p).lower() for p in policy}


def check(counts: Mapping[tuple[str, str], int], policy: str | Sequence[str]) -> None:
    """Refuse a mixture with samples that its policy forbids.

    counts: samples by (dataset, licence). InputError with the counts of what is not allowed.
    """
    wrong = {k: n for k, n in sorted(counts.items()) if n and not allowed(k[1], policy)}
    if wrong:
        listed = ", ".join(f"{n} of {dataset} under {license_id}" for (dataset, license_id), n in wrong.items())
        name = policy if isinstance(policy, str) else f"[{', '.join(policy)}]"
        raise InputError(
            f"license_policy {name} forbids {sum(wrong.values())} of the mixture's samples: {listed}; "
            "choose other sources, filter with where: {license: [...]}, or change the policy"
        )
