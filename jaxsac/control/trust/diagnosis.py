"""What a diagnosis holds, how it reads, and how it is drawn."""

from typing import Any, NamedTuple

import numpy as np

from jaxsac.control.trust.duplicates import Duplicates
from jaxsac.control.trust.resampling import Growth, Stability

_SHOWN = 8
_WARM, _COOL = "#c1272d", "#9aa0a6"

# Beyond these a diagnosis warns.
STATIONARY = 0.05  # relative distance of the norms on the support from lam
_BELOW_NOISE = 0.9  # lam over the largest noise
_OVERLAP = 0.5  # of the supports of half samples
_OFTEN = 0.6  # share of half samples that keep a tool
_GROWING, _GROWN = 1.8, 8  # support over that of a quarter of the records; and at least so many
_SIGMAS = 2  # standard errors above which a gain counts


class Diagnosis(NamedTuple):
    """When to trust the kept tools: the record that `diagnose` returns. NaN and None: not computed,
    `report` says why. S is the support, k its size.
    """

    support: np.ndarray  # int [k]
    norms: np.ndarray  # [M]: ‖gradient_j‖ of the loss at the policy
    lam: float  # of the fit, in units of the gradient norm
    stationarity: float  # distance of the norms on S from lam, relative (0 at the optimum)
    # Above 0 (and with curvature_support > 0) this support is the only one that is optimal at this
    # lam: uniqueness, never truth; it is so on pure noise too.
    witness_margin: float  # 1 − max_{j ∉ S} norms_j / lam
    oracle_margin: float  # the same at a known support: > 0 implies that no other tool is kept
    uses: np.ndarray  # int [M]: of each tool
    records: int  # T
    features: int  # q
    effective_sample_size: float  # in records
    irrepresentability: float  # signed: < 1 where the condition holds
    irrepresentability_norm: float  # by norms: < 1 where it holds whatever the signs
    signal_ratio: float  # beta-min: min_{j ∈ S} ‖θ_j‖ / largest error that the penalty can cause
    curvature_lower: float  # ≤ restricted strong convexity
    curvature_upper: float  # ≥ restricted strong convexity
    curvature_support: float  # ≥ curvature_upper: on S alone
    curvature_records: int  # how many records these are means of
    noise: float  # 95 % quantile of the largest gradient norm under no dependence on the context
    duplicates: Duplicates  # tools that stand in for each other
    stability: Stability | None  # over half samples
    growth: Growth | None  # over nested shares of the records
    signatures: tuple[str, ...]  # what is wrong, with what to do about it

    def report(self, names: Any = None) -> str:
        """The diagnosis as text; `names` are those of the tools, by number."""
        return _report(self, str if names is None else (lambda tool: str(names[tool])))

    def __str__(self) -> str:
        return self.report()

    def plot(self, axes: Any) -> Any:
        """Each used tool's uses against its gradient norm in units of lam, the support coloured by
        its stability. Axes in, axes out.
        """
        used = self.uses > 0
        inside = np.zeros(self.uses.size, bool)
        inside[self.support] = True
        outside = used & ~inside
        scale = self.lam if self.lam > 0 else 1.0
        axes.scatter(
            self.uses[outside], self.norms[outside] / scale, s=9, color=_COOL, label="not kept"
        )
        if self.stability is None:
            axes.scatter(
                self.uses[inside], self.norms[inside] / scale, s=28, color=_WARM, label="support"
            )
        else:
            shown = axes.scatter(
                self.uses[inside],
                self.norms[inside] / scale,
                s=28,
                c=self.stability.frequency[inside],
                vmin=0,
                vmax=1,
                label="support",
            )
            axes.figure.colorbar(shown, ax=axes, label="share of half samples that keep it")
        axes.axhline(1, color="black", linewidth=0.8)
        if np.isfinite(self.noise) and self.lam > 0:
            axes.axhline(
                self.noise / scale,
                color="black",
                linewidth=0.8,
                linestyle=":",
                label="largest noise (95 %)",
            )
        axes.set_xscale("log")
        axes.set(xlabel="records that use the tool", ylabel="gradient norm / lam")
        axes.legend(frameon=False, fontsize="small")
        return axes


def _report(d: Diagnosis, name) -> str:
    used = d.uses[d.uses > 0]
    least, median = (used.min(), np.median(used)) if used.size else (0, 0)
    least_kept = d.uses[d.support].min() if d.support.size else 0
    tight = "" if d.stationarity < STATIONARY else " (refitted, or with families: no margin)"
    lines = [
        f"support         {d.support.size} of {d.uses.size:,} tools; {d.records:,} records,"
        f" {d.features} features, effective sample size {d.effective_sample_size:,.0f}",
        f"coverage        {used.size:,} tools used: least {least}, median {median:g}; in the"
        f" support: least {least_kept} uses",
        f"lam             {d.lam:.4g}, the largest noise (95 %) is {_number(d.noise, 4)}; norms on"
        f" the support are within {d.stationarity:.1%} of lam{tight}",
        f"witness margin  {_number(d.witness_margin)} at this support: above 0 it is the only"
        " optimum. It says nothing about the truth",
    ]
    if not np.isnan(d.oracle_margin):
        lines.append(
            f"oracle margin   {_number(d.oracle_margin)} at the known support: above 0, no other"
            " tool is kept"
        )
    lines += [
        f"irrepresentable {_number(d.irrepresentability)} signed,"
        f" {_number(d.irrepresentability_norm)} by norms: below 1, tools outside do not look like"
        " those inside",
        f"signal          {_number(d.signal_ratio)} = weakest kept tool / largest error that the"
        " penalty can cause: above 1, none is in doubt (a cautious bound)",
        f"curvature       {_number(d.curvature_lower)} (lower bound) <= restricted strong convexity"
        f" <= {_number(d.curvature_upper)} (upper), {_number(d.curvature_support)} on the support"
        f" (upper); from {d.curvature_records:,} records",
    ]
    if np.isnan(d.curvature_upper) and d.support.size:
        lines.append(
            "                (n/a: the support has too many coefficients, or more than the records"
            " can tell apart)"
        )
    if d.stability is not None:
        kept = d.stability.frequency[d.support]
        shaky = d.support[kept < _OFTEN]
        lines.append(
            f"stability       half samples keep {np.median(d.stability.sizes):g} tools (median),"
            f" overlap {d.stability.overlap:.2f}; {(kept >= _OFTEN).sum()} of {d.support.size} kept"
            f" tools in at least {_OFTEN:.0%} of them"
            + (f"; shaky: {_some(shaky, name)}" if shaky.size else "")
        )
    if d.growth is not None:
        sizes = zip(d.growth.records, d.growth.support, strict=True)
        steps = ", ".join(f"{size:,}: {k}" for size, k in sizes)
        values = ", ".join(f"{value:.4g}" for value in d.growth.value)
        lines.append(
            f"growth          support by records {steps}; what the contexts add to the held-out"
            f" value {values}"
        )
    for label, found in (("alike", d.duplicates.alike), ("used together", d.duplicates.together)):
        if found:
            shown = [f"{name(a)} ~ {name(b)} ({share:.2f})" for a, b, share in found[:_SHOWN]]
            more = ", ..." if len(found) > _SHOWN else ""
            lines.append(f"{label:15} {len(found)} pairs: {', '.join(shown)}{more}")
    families = d.duplicates.families
    if families:
        shown = "; ".join(_some(np.array(family), name) for family in families[:_SHOWN])
        more = "; ..." if len(families) > _SHOWN else ""
        lines.append(f"families        {len(families)} suggested: {shown}{more}")
    lines += [f"! {text}" for text in d.signatures] or ["nothing to warn of"]
    return "\n".join(lines)


def _some(tools: np.ndarray, name) -> str:
    more = ", ..." if tools.size > _SHOWN else ""
    return ", ".join(name(int(tool)) for tool in tools[:_SHOWN]) + more


def _number(value: float, digits: int = 3) -> str:
    return "n/a" if np.isnan(value) else f"{value:.{digits}g}"


def signatures(d: Diagnosis) -> tuple[str, ...]:
    """What the numbers warn of, and what to do about it."""
    found = []
    k, records = d.support.size, d.effective_sample_size
    needed = k * np.log(max(d.uses.size, 2))
    if k and records < needed:
        found.append(
            f"{records:,.0f} effective records are fewer than k log M = {needed:,.0f}: the support"
            " cannot be trusted. Log more, or raise lam."
        )
    if 0 < d.lam < _BELOW_NOISE * d.noise:
        found.append(
            'lam is below the noise: some kept tools are chance. Use lam="simulated", or trust the'
            " ranking but not the set."
        )
    if d.stability is not None and k and d.stability.overlap < _OVERLAP:
        advice = "log more, or raise lam."
        if d.duplicates.families:
            advice = "near-duplicate tools share the credit. Group them into families."
        found.append(
            f"the support oscillates (half samples share {d.stability.overlap:.0%}): {advice}"
        )
    if d.growth is not None:
        first, last = d.growth.support[0], d.growth.support[-1]
        pays = d.growth.gain > _SIGMAS * d.growth.gain_error
        if last >= _GROWN and last > _GROWING * max(first, 1) and pays:
            found.append(
                "the support keeps growing with the records, and pays: the truth is not this"
                " sparse. Expect the dense rate."
            )
        if (d.growth.gain <= d.growth.gain_error or d.growth.value[-1] <= 0) and last >= 1:
            found.append(
                "the held-out value stalls although the records grow: what is missing is not in"
                " the contexts (belief error). Improve the features, not the sample."
            )
    if d.irrepresentability >= 1:
        found.append(
            "irrepresentability fails: a tool outside looks like those inside, so the exact set is"
            " not to be had; the value may be."
        )
    shaky = d.stability is None or (k > 0 and d.stability.frequency[d.support].min() < _OFTEN)
    if d.signal_ratio < 1 and shaky:
        found.append(
            "the weakest kept tools are within the error of the penalty: refit=True removes it,"
            " more records shrink it."
        )
    rare = int((d.uses[d.support] <= d.features).sum())
    if rare:
        found.append(
            f"{rare} kept tools have no more uses than features: their coefficients are held by the"
            " penalty alone."
        )
    return tuple(found)
