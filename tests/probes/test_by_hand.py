"""The reference layers have the same outputs as the model's layers."""

import numpy as np

from tests.probes.by_hand import layers_of


def test_every_part_of_every_layer_yields_the_models_own_output(model, text):
    for index, layer in enumerate(layers_of(model, text(70))):
        for part, values in (("mixer", layer.mixer), ("mlp", layer.mlp)):
            if values:
                own = layer.own[part]
                np.testing.assert_allclose(
                    values["out"], own, atol=2e-5 * np.abs(own).max(), err_msg=f"{part} of layer {index}"
                )
