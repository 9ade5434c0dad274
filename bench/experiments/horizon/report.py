"""What was inferred, for people: text and two charts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from bench.experiments.horizon.calibration import Inference
from bench.experiments.horizon.exponent import PAPER
from bench.experiments.horizon.measure import Correlations, Entropies, Statistics
from bench.experiments.horizon.power_law import PowerLaw
from bench.experiments.plots import Line, chart

NUM_CURVE_POINTS = 60


def statistics_text(found: Statistics) -> str:
    """The statistics with their fits, and the paper's beside them."""
    lines = [
        f"{found.dataset}: {found.num_tokens:,} tokens of {found.text_bytes:,} bytes, "
        f"vocabulary of {found.vocab_size:,}",
        "",
        *_correlation_lines(found.correlations),
        "",
        *_entropy_lines(found.entropies),
        "",
        *_paper_lines(found),
    ]
    if found.exponent is None:
        lines.append("no exponent: a decay has no fit, or does not fall")
    else:
        interval = _interval(found.exponent.interval)
        lines += [f"alpha_D = gamma / (2 beta) = {found.exponent.value:.3f}{interval}", *found.exponent.says]
    return "\n".join(lines)


def _correlation_lines(found: Correlations) -> list[str]:
    lines = ["lag   top singular value   over the floor   pairs"]
    lines += [
        f"{each.lag:>3} {each.top_singular:>20.3e} {each.top_singular / found.floor:>16.1f}"
        f"   {each.num_pairs:,} of {each.num_distinct:,} kinds, "
        f"most {each.heaviest[0]!r}, {each.heaviest[1]!r}"
        + ("" if each.is_above_floor else "  (not fitted: chance may do as much)")
        for each in found.lags
    ]
    lines.append(f"floor of shuffled tokens {found.floor:.2e}; Bernstein's bound {found.floor_bound:.2e}")
    return [*lines, *_law_lines("beta", found.law, found.windows, "lags")]


def _entropy_lines(found: Entropies) -> list[str]:
    lines = ["  n   H_n between (counts)   Miller-Madow   n-grams seen once"]
    lines += [
        f"{each.context:>3} {each.plug_in:>12.3f} {each.held_out:>9.3f} {each.miller_madow:>14.3f}"
        f" {each.missing_mass:>19.1%}" + ("  undersampled" if each.is_undersampled else "")
        for each in found.counted
    ]
    if found.source == "checkpoint":
        shown = [(n, nats) for n, nats in zip(found.contexts, found.nats, strict=True) if n & (n - 1) == 0]
        lines.append("loss by tokens of context: " + ", ".join(f"{n}: {nats:.3f}" for n, nats in shown))
    lines += _law_lines("gamma", found.law, found.windows, "contexts")
    if found.law_of_plug_in is not None and found.source == "counts":
        law = found.law_of_plug_in
        lines.append(f"gamma of the lower bounds: {law.exponent:.3f} over {_window(law)}")
    if found.with_fitted_rate is not None:
        rate, law = found.with_fitted_rate
        lines.append(
            f"with H_infinity fitted ({rate + found.entropy_rate:.2f} nats, not {found.entropy_rate:g}): "
            f"gamma {law.exponent:.3f}, R2 {law.r_squared:.4f}"
        )
    return [*lines, *found.says]


def _law_lines(name: str, law: PowerLaw | None, others: Iterable[PowerLaw], unit: str) -> list[str]:
    if law is None:
        return [f"{name}: fewer than 3 {unit} can be fitted"]
    lines = [
        f"{name} = {law.exponent:.3f} +- {law.standard_error:.3f}{_interval(law.interval)} over {unit} "
        f"{_window(law)}, {law.num_points} points, R2 {law.r_squared:.4f}"
    ]
    apart = [f"{_window(each)}: {each.exponent:.3f} (R2 {each.r_squared:.3f})" for each in others]
    return [*lines, f"  over other windows: {', '.join(apart)}"] if apart else lines


def _paper_lines(found: Statistics) -> list[str]:
    lines = [
        f"paper, {each.text}: beta {each.beta} +- {each.beta_error}, gamma {each.gamma} +- "
        f"{each.gamma_error}, alpha_D {each.alpha} +- {each.alpha_error}"
        for each in PAPER
    ]
    law, wiki = found.correlations.law, PAPER[-1]
    if law is not None:
        is_within = abs(law.exponent - wiki.beta) <= wiki.beta_error
        lines.append(
            f"beta is {'within' if is_within else 'outside'} the paper's {wiki.beta} +- {wiki.beta_error}"
        )
    return lines


def inference_text(found: Inference) -> str:
    """The calibration and what follows from it."""
    lines = [f"  {each.tokens:>14,} tokens: {each.score:.4f} ({each.num_runs} runs)" for each in found.points]
    if found.law is not None:
        law = found.law
        lines.append(
            f"L(D) = {law.asymptote:.4f} + {law.amplitude:.4g} D^-{law.alpha:.3f}, R2 {law.r_squared:.4f}"
            + ("" if len(found.points) > 2 else " (two horizons: met exactly)")
        )
    if found.target_tokens is not None:
        lines.append(
            f"target {found.target:g} takes {found.target_tokens:,.0f} tokens{_span(found)}, "
            f"{found.ratio:.2f} a parameter; neighbour {found.confirmation_ratio:.2f}"
        )
    if found.decision == "fallback":
        return "\n".join(
            [*lines, f"{found.status}: {found.why}; fallback, {found.chosen_ratio:g} a parameter"]
        )
    return "\n".join([*lines, f"chosen: {found.chosen_ratio:.2f} tokens a parameter, then the neighbour"])


def _span(found: Inference) -> str:
    if found.target_tokens_interval is None:
        return ""
    low, high = ("never" if end is None else f"{end:,.0f}" for end in found.target_tokens_interval)
    return f" ({low} to {high} over alpha_D's interval)"


def _window(law: PowerLaw) -> str:
    return f"{law.window[0]:g} to {law.window[1]:g}"


def _interval(interval: tuple[float, float] | None) -> str:
    return f" (95 %: {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def statistics_chart(found: Statistics) -> str:
    """Both decays with their fits, each relative to its fit or value at 1, over lag or context."""
    decay, entropy = found.correlations, found.entropies
    one = decay.law.amplitude if decay.law else decay.lags[0].top_singular
    lines = [
        Line("top singular value", [(x.lag, x.top_singular / one) for x in decay.lags], True, 0),
        *_fit_line("beta", decay.law, one, 0),
    ]
    reach = [min(x.lag for x in decay.lags), max(x.lag for x in decay.lags)]
    lines.append(Line("floor of shuffled tokens", [(x, decay.floor / one) for x in reach], False, 7))
    if entropy.nats:
        unit = entropy.law.amplitude if entropy.law else entropy.nats[0]
        name = "entropy, from counts" if entropy.source == "counts" else "entropy, from a model"
        points = [(n, h / unit) for n, h in zip(entropy.contexts, entropy.nats, strict=True)]
        lines += [Line(name, points, True, 1), *_fit_line("gamma", entropy.law, unit, 1)]
    return chart(
        f"{found.dataset}: decay over lag and over context",
        "lag, or tokens of context",
        "relative to the fit at 1",
        lines,
        log_x=True,
        log_y=True,
    )


def _fit_line(name: str, law: PowerLaw | None, unit: float, colour: int) -> list[Line]:
    if law is None:
        return []
    points = [(x, law.at(x) / unit) for x in law.window]
    return [Line(f"{name} = {law.exponent:.3f}", points, False, colour)]


def tokens_chart(found: Inference, dataset: str, metric: str) -> str | None:
    """The law through the runs, and where it meets the target; None without a law."""
    if found.law is None:
        return None
    law, low = found.law, 0.8 * min(point.tokens for point in found.points)
    ends = [point.tokens for point in found.points]
    ends += [round(found.target_tokens)] if found.target_tokens is not None else []
    high = 1.25 * max(ends)
    at = [low * (high / low) ** (k / NUM_CURVE_POINTS) for k in range(NUM_CURVE_POINTS + 1)]
    lines = [
        Line("runs", [(point.tokens, point.score) for point in found.points], True, 0),
        Line(
            f"L = {law.asymptote:.3f} + {law.amplitude:.3g} D^-{law.alpha:.3f}",
            [(d, law.at(d)) for d in at],
            False,
            0,
        ),
    ]
    if found.target is not None:
        lines.append(Line(f"target {found.target:g}", [(low, found.target), (high, found.target)], False, 1))
    if found.target is not None and found.target_tokens is not None:
        met = [(found.target_tokens, found.target)]
        lines.append(Line(f"{found.target_tokens:.3g} tokens, {found.ratio:.3g} a parameter", met, True, 1))
    title = f"{dataset}: tokens against the target"
    return chart(title, "training tokens", metric, lines, log_x=True)
