"""Whether the photos of a window look unlike those that a model was trained on: a permutation test over whole photos.

Tiles of one photo are alike, so that tiles are no independent draws; photos are the unit. If a window's photos came
from where the reference's came from, then any choice of as many photos out of both would differ from the rest as much.
So the window is compared with random choices, and the limit is what these reach: no formula, and exact for any number
of photos (Phipson and Smyth, Permutation p-values should never be zero, 2010). All statistics share one limit, that of
the largest of them, which holds the rate of false alarms over all of them together (Westfall and Young,
Resampling-Based Multiple Testing, 1993).
"""

import math
import zlib
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.monitoring.prediction_log import IMAGE_STATISTICS
from pipeline.params import Monitor

Values = npt.NDArray[np.float64]
Choices = npt.NDArray[np.int64]  # (n_choices, n_photos of the window), positions; the first one is the window itself

ALL_STATISTICS = "image statistics"  # how they vary together
EMBEDDING = "embedding"  # with the image statistics
CHOICES_PER_ALARM = 40  # so many choices reach the limit by chance, so that its rate is known to about a sixth
GATHERED_ROWS = 100_000  # in memory at a time


@dataclass(frozen=True)
class Comparison:
    """A window against the reference.

    Attributes:
        n_photos: of the window.
        n_tiles_per_photo: so many tiles of each photo of the reference were compared, at most.
        p_value: share of the random choices that differ from the rest as much as the window does, 0..1.
        alpha: the window has drifted where p_value is not above it.
        limit: of the scores.
        scores: a row a statistic: `statistic`, `score` (standard deviations over what chance gives on average), and for
            a single image statistic its mean over photos, `reference` and `window`; NaN for the others.
    """

    n_photos: int
    n_tiles_per_photo: int
    p_value: float
    alpha: float
    limit: float
    scores: pd.DataFrame

    @property
    def has_drifted(self) -> bool:
        """Whether the window's photos are unlike those of the reference."""
        return self.p_value <= self.alpha

    @property
    def drifted_statistics(self) -> list[str]:
        """The statistics whose score is above the limit, largest first; none where nothing has drifted."""
        above = self.scores[self.scores["score"] > self.limit] if self.has_drifted else self.scores.iloc[:0]
        return above.sort_values("score", ascending=False)["statistic"].tolist()


def alpha_of(monitor: Monitor) -> float:
    """Return the rate of false alarms that one window may have, 0..1."""
    return min(1.0, monitor.false_alarms_per_month / monitor.windows_per_month)


def can_alarm(n_reference: int, n_window: int, monitor: Monitor) -> bool:
    """Return whether so many photos are enough for an alarm: those asked for, and enough different choices."""
    n_choices = math.comb(n_reference + n_window, n_window)
    return n_window >= monitor.window_photos and n_choices * alpha_of(monitor) > 1


def compare(reference: pd.DataFrame, window: pd.DataFrame, monitor: Monitor) -> Comparison:
    """Compare a window of photos with the reference; equal input gives equal output.

    Args:
        reference: a row a tile: photo, the image statistics, embedding (an array of 32 numbers).
        window: the same.
        monitor: which statistics, and how many false alarms.

    Raises:
        ValueError: there is no photo in one of them.
    """
    if reference.empty or window.empty:
        raise ValueError("There is no photo to compare.")
    # Another window must have other choices: the same ones again and again would be too few or too many for ever.
    rng = np.random.default_rng(zlib.crc32(window[list(IMAGE_STATISTICS)].to_numpy(np.float64).tobytes()))
    # A mean over few tiles varies more: the reference gets no more of them than the window has.
    n_tiles = int(window["photo"].value_counts().min())
    known = sample_tiles(reference, n_tiles, rng)
    photos = photo_scores(window, known)
    n_photos = window["photo"].nunique()
    choices = random_choices(len(photos), n_photos, alpha_of(monitor), rng)
    statistics = statistics_of(photos, list(monitor.statistics), choices)
    scores, largest, limit = scores_and_limit(np.stack(list(statistics.values())), alpha_of(monitor))
    means = {
        name: (photo_statistics(known)[name].mean(), photo_statistics(window)[name].mean()) for name in IMAGE_STATISTICS
    }
    return Comparison(
        n_photos=n_photos,
        n_tiles_per_photo=n_tiles,
        p_value=float((largest >= largest[0]).mean()),
        alpha=alpha_of(monitor),
        limit=limit,
        scores=pd.DataFrame(
            {
                "statistic": list(statistics),
                "reference": [means.get(name, (np.nan, np.nan))[0] for name in statistics],
                "window": [means.get(name, (np.nan, np.nan))[1] for name in statistics],
                "score": scores,
            }
        ),
    )


def sample_tiles(tiles: pd.DataFrame, n_tiles: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return n_tiles of each photo at random, all of one that has fewer."""
    return tiles.iloc[rng.permutation(len(tiles))].groupby("photo").head(n_tiles)


def photo_statistics(tiles: pd.DataFrame) -> pd.DataFrame:
    """Return the mean image statistics of each photo over its tiles."""
    return tiles.groupby("photo")[list(IMAGE_STATISTICS)].mean()


def photo_scores(window: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Return what is compared of each photo, those of the window first: means over tiles, 0 over all photos.

    Columns are those of IMAGE_STATISTICS, as normal scores, and 0..31 for the embedding. Normal scores keep a heavy
    tail from counting more than another. They are those of tiles, not of photos: a mean of many skewed values is no
    typical value, so by their own ranks photos of many tiles would differ from photos of few.
    """
    tiles = pd.concat([window, reference], ignore_index=True)
    values = pd.DataFrame(normal_scores(tiles[list(IMAGE_STATISTICS)]), columns=list(IMAGE_STATISTICS))
    embedding = pd.DataFrame(np.stack(list(tiles["embedding"])).astype(np.float64))
    is_reference = np.arange(len(tiles)) >= len(window)
    photos = pd.concat([values, embedding], axis=1).groupby([is_reference, tiles["photo"].to_numpy()]).mean()
    return photos - photos.mean()


def random_choices(n_photos: int, n_chosen: int, alpha: float, rng: np.random.Generator) -> Choices:
    """Return choices of n_chosen out of n_photos, the first ones themselves and then random ones."""
    n_choices = math.ceil(CHOICES_PER_ALARM / alpha)
    drawn = [rng.choice(n_photos, n_chosen, replace=False) for _ in range(n_choices - 1)]
    return np.stack([np.arange(n_chosen), *drawn])


def statistics_of(photos: pd.DataFrame, names: list[str], choices: Choices) -> dict[str, Values]:
    """Return each statistic of each choice, (n_choices,): how far the chosen photos are from the rest.

    A single image statistic is compared by its mean, several together by `mean_product`.

    Args:
        photos: of `photo_scores`.
        names: of image statistics, and "embedding", which takes them along.
        choices: positions of the chosen photos, (n_choices, n_chosen).
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
    """Return what a normal distribution has at each value's rank in its column (Blom 1958), centred, (n, n_columns)."""
    shares = (values.rank() - 0.375) / (len(values) + 0.25)
    scores = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])(shares)
    centred: Values = scores - scores.mean(axis=0)
    return centred


def whitened(values: Values) -> Values:
    """Return values, (n, n_columns), turned and scaled so that no direction varies more than another.

    The covariance is shrunk (Ledoit and Wolf, A well-conditioned estimator, 2004), without which few photos would all
    end up equally far from each other.
    """
    from sklearn.covariance import ledoit_wolf

    spread = values.std(axis=0)
    if not spread.any():
        return np.zeros((len(values), 1))
    standard = (values[:, spread > 0] - values[:, spread > 0].mean(axis=0)) / spread[spread > 0]
    covariance, _ = ledoit_wolf(standard, assume_centered=True)
    variances, directions = np.linalg.eigh(covariance)
    turned: Values = standard @ (directions / np.sqrt(variances))
    return turned


def mean_product(values: Values, choices: Choices) -> Values:
    """Return for each choice the mean scalar product of two different chosen photos, (n_choices,).

    It is the squared distance of the choice's mean from the centre, without the noise that each photo adds to it by
    itself (Chen and Qin, A two-sample test for high-dimensional data, 2010). Of one photo alone it is the square.
    """
    parts = np.array_split(choices, math.ceil(choices.size / GATHERED_ROWS))
    sums = np.concatenate([values[part].sum(axis=1) for part in parts])  # (n_choices, n_columns)
    squares: Values = (values**2).sum(axis=1)[choices].sum(axis=1)
    n = choices.shape[1]
    if n == 1:
        return squares
    products: Values = ((sums**2).sum(axis=1) - squares) / (n * (n - 1))
    return products


def scores_and_limit(statistics: Values, alpha: float) -> tuple[Values, Values, float]:
    """Bring statistics to one scale and find their common limit.

    Args:
        statistics: (n_statistics, n_choices), the first choice is the window.
        alpha: share of the choices that may reach the limit.

    Returns:
        The scores of the window (n_statistics,), the largest score of each choice (n_choices,), and the limit, which
        the window's largest score exceeds where its p-value is not above alpha.
    """
    spread = statistics.std(axis=1, keepdims=True)
    scores = (statistics - statistics.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    scores = np.round(scores, 9)  # equal choices differ in the last bits
    largest = scores.max(axis=0)
    n_above = math.floor(alpha * len(largest))
    return scores[:, 0], largest, float(np.sort(largest)[::-1][n_above])
