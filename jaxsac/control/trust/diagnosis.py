"""What a diagnosis holds, how it reads, and how it is drawn."""

from typing import Any, NamedTuple

import numpy as np

from jaxsac.control.trust.duplicates import Duplicates
from jaxsac.control.trust.resampling import Growth, Stability

SHOWN = 8
WARM, COOL = "#c1272d", "#9aa0a6"


class Diagnosis(NamedTuple):
    """When to trust the kept tools: the record that `diagnose` returns. NaN: not computed, `report`
    says why. S is the support, k its size.

    * `support` int [k]; `norms` [M]: ||gradient_j|| of the loss at the policy; `lam`;
      `stationarity`: how far the norms on S are from lam, relative (0 at the penalised optimum; a
      refitted policy is far from it).
    * `witness_margin`: 1 - max_{j not in S} norms_j / lam. Above 0 (and with `curvature_support` >
      0) this support is the only one that is optimal at this lam. It certifies uniqueness, never
      truth: it is positive on pure noise too. `oracle_margin`: the same at a known support, where >
      0 implies that no other tool is kept.
    * `uses` [M] of each tool; `effective_sample_size`; `records`; `features`.
    * `irrepresentability` (signed) and `irrepresentability_norm`: < 1 where the condition holds.
    * `signal_ratio` (beta-min): min_{j in S} ||theta_j|| over the largest error that the penalty
      can cause.
    * `curvature_lower` <= restricted strong convexity <= `curvature_upper` <= `curvature_support`.
    * `noise`: the 95 % quantile of the largest gradient norm under no dependence on the context, by
      multipliers.
    * `duplicates`, `stability`, `growth` (None where not asked for); `signatures`: what is wrong,
      with what to do about it.
    """

    support: np.ndarray
    norms: np.ndarray
    lam: float
    stationarity: float
    witness_margin: float
    oracle_margin: float
    uses: np.ndarray
    records: int
    features: int
    effective_sample_size: float
    irrepresentability: float
    irrepresentability_norm: float
    signal_ratio: float
    curvature_lower: float
    curvature_upper: float
    curvature_support: float
    curvature_records: int
    noise: float
    duplicates: Duplicates
    stability: Stability | None
    growth: Growth | None
    signatures: tuple[str, ...]

    def report(self, names: Any = None) -> str:
        """The diagnosis as text; `names` are those of the tools, by number."""
        return _report(
            self, (lambda tool: str(tool)) if names is None else (lambda tool: str(names[tool]))
        )

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
            self.uses[outside], self.norms[outside] / scale, s=9, color=COOL, label="not kept"
        )
        if self.stability is None:
            axes.scatter(
                self.uses[inside], self.norms[inside] / scale, s=28, color=WARM, label="support"
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
    lines = [
        f"support         {d.support.size} of {d.uses.size:,} tools; {d.records:,} records, {d.features} features, "
        f"effective sample size {d.effective_sample_size:,.0f}",
        f"coverage        {used.size:,} tools used: least {used.min() if used.size else 0}, median "
        f"{np.median(used) if used.size else 0:g}; in the support: least {d.uses[d.support].min() if d.support.size else 0} uses",
        f"lam             {d.lam:.4g}, the largest noise (95 %) is {d.noise:.4g}; norms on the support are within "
        f"{d.stationarity:.1%} of lam"
        + ("" if d.stationarity < 0.05 else " (refitted, or with families: no margin)"),
        f"witness margin  {_number(d.witness_margin)} at this support: above 0 it is the only optimum. It says nothing about the truth",
    ]
    if not np.isnan(d.oracle_margin):
        lines.append(
            f"oracle margin   {_number(d.oracle_margin)} at the known support: above 0, no other tool is kept"
        )
    lines += [
        f"irrepresentable {_number(d.irrepresentability)} signed, {_number(d.irrepresentability_norm)} by norms: below 1, tools outside do "
        "not look like those inside",
        f"signal          {_number(d.signal_ratio)} = weakest kept tool / largest error that the penalty can cause: above 1, none is in "
        "doubt (a cautious bound)",
        f"curvature       {_number(d.curvature_lower)} (lower bound) <= restricted strong convexity <= {_number(d.curvature_upper)} (upper), "
        f"{_number(d.curvature_support)} on the support (upper); from {d.curvature_records:,} records",
    ]
    if np.isnan(d.curvature_upper) and d.support.size:
        lines.append(
            "                (n/a: the support has too many coefficients, or more than the records can tell apart)"
        )
    if d.stability is not None:
        kept = d.stability.frequency[d.support]
        shaky = d.support[kept < 0.6]
        lines.append(
            f"stability       half samples keep {np.median(d.stability.sizes):g} tools (median), overlap {d.stability.overlap:.2f}; "
            f"{(kept >= 0.6).sum()} of {d.support.size} kept tools in at least 60 % of them"
            + (f"; shaky: {_some(shaky, name)}" if shaky.size else "")
        )
    if d.growth is not None:
        steps = ", ".join(
            f"{size:,}: {k}" for size, k in zip(d.growth.records, d.growth.support, strict=True)
        )
        values = ", ".join(f"{value:.4g}" for value in d.growth.value)
        lines.append(
            f"growth          support by records {steps}; what the contexts add to the held-out value {values}"
        )
    pairs = [("alike", d.duplicates.alike), ("used together", d.duplicates.together)]
    for label, found in pairs:
        if found:
            shown = ", ".join(
                f"{name(a)} ~ {name(b)} ({similarity:.2f})" for a, b, similarity in found[:SHOWN]
            )
            lines.append(
                f"{label:15} {len(found)} pairs: {shown}" + (", ..." if len(found) > SHOWN else "")
            )
    if d.duplicates.families:
        shown = "; ".join(_some(np.array(family), name) for family in d.duplicates.families[:SHOWN])
        lines.append(
            f"families        {len(d.duplicates.families)} suggested: {shown}"
            + ("; ..." if len(d.duplicates.families) > SHOWN else "")
        )
    lines += [f"! {text}" for text in d.signatures] or ["nothing to warn of"]
    return "\n".join(lines)


def _some(tools: np.ndarray, name) -> str:
    return ", ".join(name(int(tool)) for tool in tools[:SHOWN]) + (
        ", ..." if tools.size > SHOWN else ""
    )


def _number(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.3g}"


def signatures(d: Diagnosis) -> tuple[str, ...]:
    """What the numbers warn of, and what to do about it."""
    found = []
    k, records = d.support.size, d.effective_sample_size
    if k and records < k * np.log(max(d.uses.size, 2)):
        found.append(
            f"{records:,.0f} effective records are fewer than k log M = {k * np.log(d.uses.size):,.0f}: the support cannot be trusted. "
            "Log more, or raise lam."
        )
    if 0 < d.lam < 0.9 * d.noise:
        found.append(
            'lam is below the noise: some kept tools are chance. Use lam="simulated", or trust the ranking but not the set.'
        )
    if d.stability is not None and k and d.stability.overlap < 0.5:
        found.append(
            f"the support oscillates (half samples share {d.stability.overlap:.0%}): "
            + (
                "near-duplicate tools share the credit. Group them into families."
                if d.duplicates.families
                else "log more, or raise lam."
            )
        )
    if d.growth is not None:
        first, last = d.growth.support[0], d.growth.support[-1]
        if last >= 8 and last > 1.8 * max(first, 1) and d.growth.gain > 2 * d.growth.gain_error:
            found.append(
                "the support keeps growing with the records, and pays: the truth is not this sparse. Expect the dense rate."
            )
        if (d.growth.gain <= d.growth.gain_error or d.growth.value[-1] <= 0) and last >= 1:
            found.append(
                "the held-out value stalls although the records grow: what is missing is not in the contexts (belief error). "
                "Improve the features, not the sample."
            )
    if not np.isnan(d.irrepresentability) and d.irrepresentability >= 1:
        found.append(
            "irrepresentability fails: a tool outside looks like those inside, so the exact set is not to be had; the value may be."
        )
    shaky = d.stability is None or (k > 0 and d.stability.frequency[d.support].min() < 0.6)
    if not np.isnan(d.signal_ratio) and d.signal_ratio < 1 and shaky:
        found.append(
            "the weakest kept tools are within the error of the penalty: refit=True removes it, more records shrink it."
        )
    if k and d.uses[d.support].min() <= d.features:
        found.append(
            f"{(d.uses[d.support] <= d.features).sum()} kept tools have no more uses than features: their weights are held by the penalty alone."
        )
    return tuple(found)
