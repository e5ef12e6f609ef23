"""Drift detection: a permutation test over photos that compares a window with the images a model was trained on.

The unit is the photo, because its tiles are not independent. Without drift, the window differs from the rest no more
than a random choice of as many photos from both does, and that is exact for any number of photos (Phipson and Smyth,
Permutation p-values should never be zero, 2010). All statistics share one limit, that of the largest of them, which
bounds the rate of false alarms over all of them together (Westfall and Young, Resampling-Based Multiple Testing, 1993).
"""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from pipeline.monitoring.prediction_log import IMAGE_STATISTICS
from pipeline.params import Monitor

Values = npt.NDArray[np.float64]
Choices = npt.NDArray[np.int64]  # (n_choices, n_photos of the window): positions; the first choice is the window

ALL_STATISTICS = "image statistics"  # all of them jointly
EMBEDDING = "embedding"  # jointly with the image statistics
CHOICES_PER_ALARM = 40  # choices that reach the limit by chance; with 40, the rate is known to about a sixth
GATHERED_ROWS = 100_000  # in memory at a time


@dataclass(frozen=True)
class DriftComparison:
    """Result of comparing a window with the reference.

    `scores` has one row per statistic: `statistic`, `score` (standard deviations above the mean of the random choices),
    `reference` and `window` (means over photos of a single image statistic; NaN for joint statistics).
    """

    n_photos: int  # in the window
    n_tiles_per_photo: int  # used from each photo of the reference, at most
    p_value: float  # share of random choices that differ from the rest at least as much as the window, 0..1
    alpha: float  # significance level; the window has drifted if p_value <= alpha
    limit: float  # of the scores
    scores: pd.DataFrame

    @property
    def has_drifted(self) -> bool:
        """Whether the photos of the window differ from those of the reference."""
        return self.p_value <= self.alpha

    @property
    def drifted_statistics(self) -> list[str]:
        """Statistics whose score is above the limit, largest first; empty if the window has not drifted."""
        above = self.scores[self.scores["score"] > self.limit] if self.has_drifted else self.scores.iloc[:0]
        return above.sort_values("score", ascending=False)["statistic"].tolist()

    def table(self) -> dict[str, list[Any]]:
        """Return the columns of `scores` and the limit, rounded for people."""
        rounded = self.scores.assign(limit=self.limit).round(3)
        return {str(name): column.tolist() for name, column in rounded.items()}


def alpha_of(monitor: Monitor) -> float:
    """Return the allowed false-alarm rate of one window, 0..1."""
    return min(1.0, monitor.false_alarms_per_month / monitor.windows_per_month)


def can_alarm(n_reference: int, n_window: int, monitor: Monitor) -> bool:
    """Return whether there are enough photos for an alarm: at least `window_photos`, and enough distinct choices."""
    n_choices = math.comb(n_reference + n_window, n_window)
    return n_window >= monitor.window_photos and n_choices * alpha_of(monitor) > 1


def compare(reference: pd.DataFrame, window: pd.DataFrame, monitor: Monitor) -> DriftComparison:
    """Compare a window of photos with the reference; equal input gives equal output.

    Both have one row per tile: photo, the image statistics, embedding (an array of 32 numbers). Raises ValueError if
    one of them has no photo.
    """
    if reference.empty or window.empty:
        raise ValueError("There is no photo to compare.")
    # Seeded by the window: with the same choices every time, the error of the limit would never average out.
    rng = np.random.default_rng(zlib.crc32(window[list(IMAGE_STATISTICS)].to_numpy(np.float64).tobytes()))
    # Means over few tiles vary more, so reference photos use no more tiles than the smallest window photo has.
    n_tiles = int(window["photo"].value_counts().min())
    sampled = sample_tiles(reference, n_tiles, rng)
    photos = photo_scores(window, sampled)
    n_photos = window["photo"].nunique()
    choices = random_choices(len(photos), n_photos, alpha_of(monitor), rng)
    statistics = statistics_of(photos, list(monitor.statistics), choices)
    scores, largest, limit = scores_and_limit(np.stack(list(statistics.values())), alpha_of(monitor))
    means = {"reference": photo_statistics(sampled).mean(), "window": photo_statistics(window).mean()}
    table = pd.DataFrame({"score": scores}, index=list(statistics)).assign(**means)  # NaN for joint statistics
    return DriftComparison(
        n_photos=n_photos,
        n_tiles_per_photo=n_tiles,
        p_value=float((largest >= largest[0]).mean()),
        alpha=alpha_of(monitor),
        limit=limit,
        scores=table.rename_axis("statistic").reset_index(),
    )


def sample_tiles(tiles: pd.DataFrame, n_tiles: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return n_tiles random tiles of each photo, or all of its tiles if it has fewer."""
    return tiles.iloc[rng.permutation(len(tiles))].groupby("photo").head(n_tiles)


def photo_statistics(tiles: pd.DataFrame) -> pd.DataFrame:
    """Return the mean image statistics of each photo over its tiles."""
    return tiles.groupby("photo")[list(IMAGE_STATISTICS)].mean()


def photo_scores(window: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return a row per photo, those of the window first: means over its tiles, centred over all photos.

    Columns are IMAGE_STATISTICS, as normal scores, and 0..31 for the embedding. Normal scores keep a heavy tail from
    dominating. Tiles are ranked, not photos: the mean of many skewed values differs from a typical value, so ranks of
    photo means would separate photos with many tiles from photos with few.
    """
    tiles = pd.concat([window, reference], ignore_index=True)
    values = pd.DataFrame(normal_scores(tiles[list(IMAGE_STATISTICS)]), columns=list(IMAGE_STATISTICS))
    embedding = pd.DataFrame(np.stack(list(tiles["embedding"])).astype(np.float64))
    is_reference = np.arange(len(tiles)) >= len(window)
    photos = pd.concat([values, embedding], axis=1).groupby([is_reference, tiles["photo"].to_numpy()]).mean()
    return photos - photos.mean()


def random_choices(n_photos: int, n_chosen: int, alpha: float, rng: np.random.Generator) -> Choices:
    """Return choices of n_chosen out of n_photos: first 0..n_chosen - 1, the window, then random ones."""
    n_choices = math.ceil(CHOICES_PER_ALARM / alpha)
    drawn = [rng.choice(n_photos, n_chosen, replace=False) for _ in range(n_choices - 1)]
    return np.stack([np.arange(n_chosen), *drawn])


def statistics_of(photos: pd.DataFrame, names: list[str], choices: Choices) -> dict[str, Values]:
    """Return each statistic for each choice, (n_choices,): the distance of the chosen photos from the rest.

    A single image statistic is compared by its mean, several together by `mean_product`. `photos` is the output of
    `photo_scores`; `names` are image statistics, and "embedding", which is tested jointly with them.
    """
    columns = [name for name in names if name in IMAGE_STATISTICS]
    values = photos[columns].to_numpy()  # (n_photos, n_statistics)
    statistics = {name: np.abs(values[choices, column].mean(axis=1)) for column, name in enumerate(columns)}
    if len(columns) > 1:
        statistics[ALL_STATISTICS] = mean_product(whitened(values), choices)
    if EMBEDDING in names:
        embedding = photos.drop(columns=list(IMAGE_STATISTICS)).to_numpy()
        statistics[EMBEDDING] = mean_product(whitened(np.hstack([values, embedding])), choices)
    return statistics


def normal_scores(values: pd.DataFrame) -> Values:
    """Return the normal score of each value by its rank in the column (Blom 1958), centred, (n, n_columns)."""
    shares = (values.rank() - 0.375) / (len(values) + 0.25)
    scores = norm.ppf(shares)
    return np.asarray(scores - scores.mean(axis=0), np.float64)


def whitened(values: Values) -> Values:
    """Return whitened values, (n, n_columns): rotated and scaled to equal variance in every direction.

    The covariance is shrunk (Ledoit and Wolf, A well-conditioned estimator, 2004). Without that, a small number of
    photos would all be equally far from each other.
    """
    from sklearn.covariance import ledoit_wolf

    spread = values.std(axis=0)
    if not spread.any():
        return np.zeros((len(values), 1))
    standard = (values[:, spread > 0] - values[:, spread > 0].mean(axis=0)) / spread[spread > 0]
    covariance, _ = ledoit_wolf(standard, assume_centered=True)
    variances, directions = np.linalg.eigh(covariance)
    return np.asarray(standard @ (directions / np.sqrt(variances)), np.float64)


def mean_product(values: Values, choices: Choices) -> Values:
    """Return the mean scalar product of two different chosen photos for each choice, (n_choices,).

    This is the squared distance of the mean of the choice from the centre, without the noise of single photos (Chen
    and Qin, A two-sample test for high-dimensional data, 2010). For a single photo it is the squared norm.
    """
    parts = np.array_split(choices, math.ceil(choices.size / GATHERED_ROWS))
    sums = np.concatenate([values[part].sum(axis=1) for part in parts])  # (n_choices, n_columns)
    squares: Values = (values**2).sum(axis=1)[choices].sum(axis=1)
    n = choices.shape[1]
    return squares if n == 1 else ((sums**2).sum(axis=1) - squares) / (n * (n - 1))


def scores_and_limit(statistics: Values, alpha: float) -> tuple[Values, Values, float]:
    """Standardise statistics, (n_statistics, n_choices), of which the first choice is the window.

    Return the scores of the window (n_statistics,), the largest score of each choice (n_choices,), and the limit of the
    scores, which a share of at most `alpha` of the choices exceeds.
    """
    spread = statistics.std(axis=1, keepdims=True)
    scores = (statistics - statistics.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    scores = np.round(scores, 9)  # scores of equal choices differ in the last bits
    largest = scores.max(axis=0)
    n_above = math.floor(alpha * len(largest))
    return scores[:, 0], largest, float(np.sort(largest)[::-1][n_above])
