"""What a reader of a crack map must know, whoever shows it."""

from pipeline.crack_maps.crack_map import CrackMap

NOT_PROOF = "No mark is not proof of soundness."


def warnings_of(crack_map: CrackMap) -> list[str]:
    """Return what a reader of a map must know, in sentences."""
    surface = crack_map.surface
    if surface is None:
        missed = "How many cracks this model misses was not recorded with it."
    else:
        missed = (
            f"On the test images that this photo looks most like ({surface.name}), the model missed "
            f"{surface.n_missed} of {surface.n_cracks} cracks."
        )
    strange = (
        ""
        if crack_map.tiles["in_distribution"].notna().all()
        else "It cannot tell what is unlike all that it has seen."
    )
    return [missed, NOT_PROOF, crack_map.scale, *([strange] if strange else [])]
