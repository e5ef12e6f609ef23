"""Writes the files of crack maps: those of each photo, and the summary of a run.

A photo is not mapped again if its NAME.json exists and was made from the same file by the same model with the same
settings. So a run resumes after a kill.
"""

import hashlib
import io
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from pipeline.crack_lines.tracer import load_tracer, tracer_file, tracer_identity
from pipeline.crack_maps.crack_map import CrackMap, CrackMapper, OnTiles
from pipeline.crack_maps.line_files import GEOJSON_SUFFIX, geojson, write_tables
from pipeline.crack_maps.map_page import render_maps
from pipeline.crack_maps.overlay import overlay_picture
from pipeline.crack_maps.photo_files import TILES_SUFFIX, PhotoFiles, finished_report, names_of, write_photo
from pipeline.data.image_names import MASK_SUFFIX, OVERLAY_COMMENT, OVERLAY_SUFFIX
from pipeline.data.images import UnreadableImageError, encode_png
from pipeline.data.photos import Photo, read_photo
from pipeline.data.sources import Content, read_image_file
from pipeline.errors import CracksError
from pipeline.files import replacing, write_text
from pipeline.inference.dask_cluster import compute_on_cluster
from pipeline.inference.out_of_distribution import load_detector, missed_cracks
from pipeline.inference.served import ServedModel
from pipeline.models.decision import load_decision
from pipeline.params import Map
from pipeline.registry.model_lookup import FoundModel, ModelFiles, unpacked
from pipeline.safe_text import as_utf8, cells

BAR = "{l_bar}{bar}| {n:.1f}/{total} photos [{elapsed}<{remaining}]"  # a photo of many tiles advances it bit by bit
JPEG_QUALITY = 85
PHOTOS_AT_ONCE = 2  # one is decoded or written while the tiles of the other are scored
TILE_COLUMNS = ["photo", "row", "col", "x", "y", "size", "probability", "label", "reason"]
SUMMARY_COLUMNS = [
    "photo", "name", "share_cracked", "share_review", "max_probability", "n_tiles", "n_crack", "n_review",
    "n_undecided", "n_lines", "length_px", "width", "height", "time", "latitude", "longitude", "error",
]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Settings that all photos of a run share. Its `repr` is part of `key`: renaming a field maps all photos again."""

    model: str  # description
    identity: str  # a hash of everything that determines the model's answers
    tracer: str  # a hash of its tracer of crack lines
    params: Map  # how photos are cut
    mm_per_px: float | None  # ground resolution of the photos, None if unknown
    strip_location: bool  # whether time and place are left out
    prevalence: float | None = None  # share of cracked tiles that a person states
    form: int = 3  # of the files that are written; another one maps all photos again

    def key(self, path: Path) -> str:
        """Return a hash of everything that determines the map of the photo at `path`."""
        stat = path.stat()
        return hashlib.sha256(f"{self!r}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()


def report_of(path: Path, photo: Photo, crack_map: CrackMap, job: Job) -> dict[str, Any]:
    """Return the content of NAME.json."""
    tiles, place = crack_map.tiles, None if job.strip_location else photo.place
    review = tiles[tiles["label"] == "review"].sort_values(["reason", "probability"], ascending=False)
    return {
        "photo": as_utf8(path),
        "width": crack_map.width_px,
        "height": crack_map.height_px,
        "time": None if job.strip_location else photo.time,
        "place": dict(zip(("latitude", "longitude"), place, strict=True)) if place else None,
        "model": job.model,
        "model_hash": job.identity,
        "tile_px": job.params.tile_px,
        "overlap": job.params.overlap,
        **crack_map.correction,
        "share_cracked": round(crack_map.share_of_area("crack"), 4),
        "share_review": round(crack_map.share_of_area("review"), 4),
        "max_probability": round(float(tiles["probability"].max()), 4),
        "n_tiles": len(tiles),
        "n_crack": int((tiles["label"] == "crack").sum()),
        "n_review": len(review),
        "n_undecided": int((tiles["label"] == "undecided").sum()),
        "n_out_of_distribution": None
        if tiles["in_distribution"].isna().any()
        else int((~tiles["in_distribution"].astype(bool)).sum()),
        "mm_per_px": job.mm_per_px,
        "n_lines": len(crack_map.lines),
        "length_px": round(sum(crack.length_px for crack in crack_map.cracks), 1),
        "notes": crack_map.notes(),
        "review": review[["row", "col", "x", "y", "size", "probability", "reason"]].round(4).to_dict(orient="records"),
    }


def map_photo(
    mapper: CrackMapper, job: Job, path: Path, content: Content, on_tiles: OnTiles | None = None
) -> PhotoFiles | str:
    """Return the files of a photo, or why it cannot be mapped."""
    if isinstance(content, str):
        return content
    try:
        photo = read_photo(content)
        crack_map = mapper.map(photo.pixels, job.mm_per_px, on_tiles, photo.photographed, job.prevalence)
    except (UnreadableImageError, CracksError) as error:
        return str(error)
    picture = io.BytesIO()
    with ThreadPoolExecutor(1) as pool:
        mask = pool.submit(encode_png, crack_map.mask)
        overlay_picture(photo.pixels, crack_map).save(picture, "JPEG", quality=JPEG_QUALITY, comment=OVERLAY_COMMENT)
    tiles = crack_map.tiles.round(4).assign(photo=as_utf8(path), **crack_map.correction)
    report = report_of(path, photo, crack_map, job)
    contents = {
        OVERLAY_SUFFIX: picture.getvalue(),
        MASK_SUFFIX: mask.result(),
        GEOJSON_SUFFIX: geojson(crack_map.lines, crack_map.cracks, report),
        TILES_SUFFIX: cells(tiles[[*TILE_COLUMNS, *crack_map.correction]]).to_csv(index=False).encode(),
    }
    return PhotoFiles(contents, report)


def map_on_worker(shared: tuple[ModelFiles, Job], task: tuple[Path, Content]) -> PhotoFiles | str:
    """Return `map_photo`; runs on a worker of a cluster."""
    files, job = shared
    return map_photo(_worker_mapper(files, job.params), job, *task)


@lru_cache(maxsize=1)
def _worker_mapper(files: ModelFiles, params: Map) -> CrackMapper:
    with unpacked(files) as folder:
        return CrackMapper(ServedModel.load(folder), params, load_tracer(folder))


def _map_locally(
    found: FoundModel, job: Job, paths: Sequence[Path], on_tiles: OnTiles
) -> Iterator[tuple[Path, PhotoFiles | str]]:
    """Yield each photo with its files; while the tiles of one are scored, the next is decoded."""
    mapper = CrackMapper(found.load(), job.params, load_tracer(found.folder))

    def mapped(path: Path) -> PhotoFiles | str:
        return map_photo(mapper, job, path, read_image_file(path), on_tiles)

    with ThreadPoolExecutor(PHOTOS_AT_ONCE) as pool:
        running: deque[tuple[Path, Future[PhotoFiles | str]]] = deque()
        for path in paths:
            running.append((path, pool.submit(mapped, path)))
            if len(running) > PHOTOS_AT_ONCE:
                done, files = running.popleft()
                yield done, files.result()
        for path, files in running:
            yield path, files.result()


def summary_of(out: Path, names: dict[Path, str], errors: dict[Path, str]) -> pd.DataFrame:
    """Return a row per photo, the most cracked one first, those that could not be mapped last."""
    rows = []
    for path, name in names.items():
        report = {} if path in errors else finished_report(out, name) or {}
        place = report.get("place") or {}
        rows.append({**report, **place, "photo": as_utf8(path), "name": name, "error": errors.get(path, "")})
    table = pd.DataFrame(rows, columns=SUMMARY_COLUMNS)
    order = ["share_cracked", "share_review", "max_probability"]
    return table.sort_values(order, ascending=False, na_position="last", kind="stable", ignore_index=True)


def run(
    found: FoundModel,
    paths: Sequence[Path],
    out: Path,
    params: Map,
    dask_address: str | None = None,
    *,
    mm_per_px: float | None = None,
    strip_location: bool = False,
    prevalence: float | None = None,
) -> pd.DataFrame:
    """Map photos into the folder `out`, with a page and a summary; return the summary, a row per photo.

    Raises CracksError if the model cannot be loaded or corrected, UnavailableError if the Dask cluster does not answer.
    """
    correction = load_decision(found.folder).correction(prevalence)
    tracer = tracer_identity(tracer_file(found.folder))
    job = Job(found.description, found.identity(), tracer, params, mm_per_px, strip_location, prevalence)
    names = names_of(paths)
    keys, errors, missing = {}, {}, []
    for path, name in names.items():
        try:
            key = job.key(path)
            if finished_report(out, name, key) is None:
                missing.append(path)
            keys[path] = key
        except OSError as error:
            errors[path] = error.strerror or str(error)
        except CracksError as error:
            errors[path] = str(error)
    n_mapped = len(paths) - len(missing)
    with tqdm(total=len(paths), initial=n_mapped, desc="mapping", bar_format=BAR, disable=None) as bar:
        if dask_address is None:
            results = _map_locally(found, job, missing, lambda _, __, share: bar.update(share))
        else:
            shared, tasks = (ModelFiles.read(found), job), ((path, (path, read_image_file(path))) for path in missing)
            results = compute_on_cluster(dask_address, map_on_worker, shared, tasks, local_hint="leave --dask out")
        for path, files in results:
            n_mapped += 1
            if isinstance(files, str):
                errors[path] = files
            else:
                write_photo(out, names[path], keys[path], files)
            bar.update(max(0, n_mapped - bar.n))
    summary = summary_of(out, names, errors)
    with replacing(out / "summary.csv") as partial:
        cells(summary).to_csv(partial, index=False)
    missed = missed_cracks(load_detector(found.folder))
    cracks = write_tables(out, {path: name for path, name in names.items() if path not in errors})
    page = render_maps(out, summary, found.description, missed, correction, cracks, params, mm_per_px)
    write_text(out / "index.html", page)
    return summary
