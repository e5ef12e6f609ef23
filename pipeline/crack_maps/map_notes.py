"""Caveats of a crack map."""

from pipeline.crack_maps.crack_map import CrackMap

NOT_PROOF = "An unmarked area may still have cracks."


def warnings_of(crack_map: CrackMap) -> list[str]:
    """Return the caveats to show with a map, a sentence each."""
    surface = crack_map.surface
    if surface is None:
        missed = "It is not recorded how many cracks this model misses."
    else:
        missed = (
            f"On the test images most similar to this photo ({surface.name}), the model missed "
            f"{surface.n_missed} of {surface.n_cracks} cracks."
        )
    no_detector = (
        "" if crack_map.tiles["in_distribution"].notna().all() else "The model has no out-of-distribution detector."
    )
    return [missed, NOT_PROOF, crack_map.scale, *([no_detector] if no_detector else [])]
