"""Every figure: what is drawn is what the statistic says, in the right colours, and the caller's settings stay."""

import importlib
import pkgutil

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.testing.recordings import made_recording

DRAWS = {
    "layer_table": "layer_table",
    "half_life": "half_life",
    "gates": "gates",
    "attention_distance": "attention_distance",
    "expert_load": "expert_load",
    "coactivation": "coactivation",
    "specialisation": "specialisation",
    "unused_experts": "unused_experts",
    "distinct_experts": "distinct_experts",
    "time_by_kind": "time_by_kind",
    "memory": "memory",
    "residual": "residual",
}
ON_ONE_AXES = ("layer_table", "half_life", "unused_experts", "memory")
BLUE, ORANGE = "#0072b2", "#e69f00"


@pytest.fixture(scope="module")
def recording():
    return made_recording(sequences=16, length=40)


@pytest.fixture(scope="module")
def statistics(recording):
    return {plot: getattr(stats, statistic)(recording) for plot, statistic in DRAWS.items()}


def test_every_plot_is_tried_here():
    elsewhere = {"acceptance", "calibration", "speedup", "agreement"}  # tests/plots/test_acceptance.py
    elsewhere |= {"attention_map", "reach"}  # tests/plots/test_reach.py
    elsewhere |= {"mass_by_distance", "reach_by_label"}  # tests/plots/test_reach_by_distance.py
    elsewhere |= {"gate_by_token", "reconstruction", "retrieval", "sink"}  # tests/plots/test_heads.py
    elsewhere |= {"losses"}  # tests/plots/test_losses.py
    elsewhere |= {"state_by_head", "state_growth", "state_rank"}  # tests/plots/test_states.py
    elsewhere |= {"state_precision", "state_precision_by_head"}  # tests/plots/test_state_precision.py
    elsewhere |= {"retention", "retention_by_label"}  # tests/plots/test_retention.py
    elsewhere |= {"capacity", "interference"}  # tests/plots/test_retention_capacity.py
    elsewhere |= {"mean_over_texts"}  # tests/plots/test_texts.py
    elsewhere |= {"ablation_map"}  # tests/plots/test_ablations.py
    elsewhere |= {"ablation_ranking"}  # tests/plots/test_ablations_ranking.py
    elsewhere |= {"ablated_acceptance"}  # tests/plots/test_ablated_acceptance.py
    elsewhere |= {"patching"}  # tests/plots/test_patching.py
    assert set(DRAWS) | elsewhere | {"COLOURS", "LABELS", "style"} == set(plots.__all__)


def test_names_stay_functions_when_their_files_are_imported_first():
    for module in pkgutil.iter_modules(plots.__path__):
        importlib.import_module(f"qwenlab.plots.{module.name}")
    assert all(callable(getattr(plots, name)) for name in DRAWS)


def test_the_two_kinds_have_their_two_colours():
    assert plots.COLOURS == {DELTANET: "#0072B2", ATTENTION: "#E69F00"}
    assert plots.LABELS[DELTANET] == "DeltaNet"
    assert plots.LABELS[ATTENTION] == "attention"


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_a_plot_leaves_settings_and_pyplot_as_they_were(name, statistics):
    mine = {"font.size": 17.0, "axes.spines.top": True, "text.parse_math": True}
    with mpl.rc_context(mine):
        before = dict(mpl.rcParams)
        figure = getattr(plots, name)(statistics[name])
        figure.draw_without_rendering()
        assert dict(mpl.rcParams) == before
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    ticks = [text for ax in figure.axes for text in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    assert {text.get_fontsize() for text in ticks} == {8.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("size", ["eight layers", "many layers"])
def test_no_text_is_cut_off_and_every_axis_is_named(name, size, statistics):
    data = statistics[name] if size == "eight layers" else getattr(stats, DRAWS[name])(large())
    figure = getattr(plots, name)(data)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge == 255).all()  # what is cut off touches the edge
    assert any(ax.get_xlabel() for ax in figure.axes)


_LARGE = []


def large():
    if not _LARGE:
        sizes = dict(layers=40, experts=64, top_k=8, heads=16, key_heads=4, attention_heads=16)
        _LARGE.append(made_recording(labels=["code", "prose", "arithmetic", "recall"], length=12, **sizes))
    return _LARGE[0]


def test_labels_that_look_like_mathematics_are_drawn_as_they_are():
    recording = made_recording(labels=["$x_1$", "a$b"], probes=["routing"])
    figure = plots.specialisation(stats.specialisation(recording))
    figure.draw_without_rendering()
    drawn = {text.get_text(): text for text in figure.findobj(mpl.text.Text)}
    assert not drawn["$x_1$"].get_parse_math()
    assert not drawn["a$b"].get_parse_math()


@pytest.mark.parametrize("name", DRAWS)
def test_another_dataset_is_refused_by_what_it_lacks(name, statistics):
    wrong = statistics["memory" if name != "memory" else "half_life"]
    with pytest.raises(MissingVariable, match=rf"Draw what qwenlab\.stats\.{DRAWS[name]}\(recording\) returns"):
        getattr(plots, name)(wrong)


def test_a_recording_is_refused(recording):
    with pytest.raises(MissingVariable, match="This is a Recording, not a Dataset of statistics"):
        plots.half_life(recording)


def test_statistics_by_label_must_be_narrowed_to_one(recording):
    by_label = stats.half_life(recording, by_label=True)
    with pytest.raises(BadArgument, match=r"by label: code, prose\.\nSelect one: \.sel\(label='code'\)"):
        plots.half_life(by_label)
    assert plots.half_life(by_label.sel(label=["code"])).axes
    assert plots.half_life(by_label.sel(label="prose")).axes


@pytest.mark.parametrize("name", ON_ONE_AXES)
def test_it_draws_in_axes_that_are_given(name, statistics):
    mine = Figure()
    ax = mine.subplots()
    assert getattr(plots, name)(statistics[name], ax=ax) is mine
    assert ax.has_data()


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
def test_a_notebook_without_pyplot_shows_a_picture(name, statistics):
    assert getattr(plots, name)(statistics[name])._repr_png_().startswith(b"\x89PNG")


def lines(ax):
    return [line for line in ax.collections if isinstance(line, LineCollection)]


def points(ax):
    return [dots for dots in ax.collections if isinstance(dots, PathCollection)]


def mesh(ax):
    (one,) = ax.findobj(QuadMesh)
    return one.get_array()


def test_half_life_draws_the_quantiles_of_each_head_lowest_median_first(statistics):
    ax = plots.half_life(statistics["half_life"]).axes[0]
    life = statistics["half_life"]["half_life"]
    for place, dots in enumerate(points(ax)):
        medians = np.sort(life.isel(layer=place).sel(quantile=0.5))
        assert_allclose(dots.get_offsets()[:, 1], medians)
        assert np.abs(dots.get_offsets()[:, 0] - place).max() < 0.5
    outer = lines(ax)[0]
    order = np.argsort(life.isel(layer=0).sel(quantile=0.5).values)
    ends = life.isel(layer=0, head=order).sel(quantile=[0.05, 0.95])
    assert_allclose([segment[:, 1] for segment in outer.get_segments()], ends)
    assert to_hex(outer.get_color()[0]) == BLUE
    assert ax.get_ylabel() == "half-life of the state (tokens)"
    assert ax.get_yscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "4", "5", "6"]


def test_attention_distance_draws_quantiles_and_targets(statistics):
    data = statistics["attention_distance"]
    above, below = plots.attention_distance(data).axes
    medians = data["distance_quantile"].isel(layer=1).sel(quantile=0.5)
    assert_allclose(points(above)[1].get_offsets()[:, 1], np.sort(medians))
    assert to_hex(lines(above)[0].get_color()[0]) == ORANGE
    drawn = [dots.get_offsets()[:, 1] for dots in points(below)]
    masses = ("first_mass", "previous_mass", "self_mass")
    assert_allclose(drawn, [data[name].sel(head=head) for name in masses for head in data["head"]])
    assert above.get_ylabel() == "distance back (tokens)"


def test_gates_hold_every_head_in_the_shades_of_its_kind(statistics):
    openness, beta = plots.gates(statistics["gates"]).axes
    meshes = openness.findobj(QuadMesh)
    assert len(meshes) == 8
    assert len(beta.findobj(QuadMesh)) == 6
    assert_allclose(4 * meshes[0].get_array().sum(axis=0), 1)
    for place, colour in ((0, BLUE), (3, ORANGE)):
        assert_allclose(meshes[place].get_cmap()(0.5), to_rgba(colour), atol=0.01)


def test_expert_load_draws_load_over_even_and_the_variation(statistics):
    data = statistics["expert_load"]
    left, right = plots.expert_load(data).axes[:2]
    share = data["share"] / data["even_share"]
    assert_allclose(mesh(left).filled(0), share)
    assert_allclose(points(right)[0].get_offsets()[:, 0], data["variation"])
    assert [to_hex(colour) for colour in points(right)[0].get_facecolors()] == [BLUE, BLUE, BLUE, ORANGE] * 2
    assert_allclose([s[:, 0] for s in lines(right)[0].get_segments()], data["variation_interval"])


def test_coactivation_draws_a_square_a_layer(statistics):
    data = statistics["coactivation"]
    figure = plots.coactivation(data)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles[3] == "layer 3 · attention"
    assert len(titles) == 8
    drawn = mesh(figure.axes[2])
    here = data.isel(layer=2)
    expected = here["lift"].where(here["expected"] >= 1).transpose("expert_2", "expert")
    assert_allclose(drawn.filled(np.nan), expected.clip(1e-3))


def test_coactivation_of_chosen_layers_only(statistics):
    figure = plots.coactivation(statistics["coactivation"], layers=[5, 7])
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["layer 5 · DeltaNet", "layer 7 · attention"]
    with pytest.raises(BadArgument, match=r"layers=\[9\]: these statistics have layers"):
        plots.coactivation(statistics["coactivation"], layers=[5, 9])


def test_specialisation_draws_information_control_and_one_layers_experts(statistics):
    data = statistics["specialisation"]
    figure = plots.specialisation(data)
    above, below = figure.axes[:2]
    (dots,) = points(above)
    assert_allclose(dots.get_offsets()[:, 1], data["information"])
    filled = [to_hex(colour) != "#ffffff" for colour in dots.get_facecolors()]
    assert filled == (data["p_value"] < 0.05).values.tolist()
    assert_allclose([s[:, 1] for s in lines(above)[0].get_segments()], data["shuffled_interval"])
    most = int(data["information"].argmax("layer"))
    assert below.get_xlabel() == f"expert of layer {most}"
    assert_allclose(mesh(below), data["log_odds"].isel(layer=most).transpose("label", "expert"))
    assert [label.get_text() for label in below.get_yticklabels()] == ["code", "prose"]
    assert above.get_ylabel() == "information (bit)"
    assert plots.specialisation(data, layer=2).axes[1].get_xlabel() == "expert of layer 2"
    with pytest.raises(BadArgument, match=r"specialisation\(layer=11\): give one of 0, 1, 2"):
        plots.specialisation(data, layer=11)


def test_unused_experts_draws_a_curve_a_layer_and_names_where_most_are_left(statistics):
    data = statistics["unused_experts"]
    ax = plots.unused_experts(data).axes[0]
    assert_allclose([line.get_ydata() for line in ax.get_lines()], data["unused"])
    assert_allclose(ax.get_lines()[0].get_xdata(), data["sample_size"])
    assert [line.get_color().lower() for line in ax.get_lines()] == [BLUE, BLUE, BLUE, ORANGE] * 2
    named = {text.get_text() for text in ax.texts}
    assert len(named) == 5
    assert "layer 7: 1" in named
    assert ax.get_xlabel() == "tokens read"
    assert ax.get_ylabel() == "experts not yet used"


def test_distinct_experts_draws_seen_and_unrelated(statistics):
    data = statistics["distinct_experts"].dropna("window", how="all", subset=["distinct"])
    left, right = plots.distinct_experts(statistics["distinct_experts"]).axes
    assert_allclose(left.get_lines()[0].get_ydata(), data["independent"].isel(layer=0))
    assert_allclose(left.get_lines()[1].get_ydata(), data["distinct"].isel(layer=0))
    assert_allclose(right.get_lines()[7].get_ydata(), data["relative"].isel(layer=7))
    assert right.get_lines()[7].get_color().lower() == ORANGE


def test_time_by_kind_draws_shares_that_add_up(statistics):
    data = statistics["time_by_kind"]
    above, prefill, decode = plots.time_by_kind(data).axes
    widths = [patch.get_width() for patch in above.patches]
    assert_allclose(widths, data["kind_share"].transpose("phase", "mixer_kind", "part").values.ravel())
    assert_allclose(sum(widths), 2)
    heights = np.array([patch.get_height() for patch in prefill.patches]).reshape(3, 8)
    assert_allclose(heights, data["part_share"].sel(phase="prefill").transpose("part", "layer"))
    assert to_hex(prefill.patches[3].get_facecolor()) == ORANGE
    assert "DeltaNet mixer" in " ".join(text.get_text() for text in above.texts)
    assert decode.get_ylabel() == "decode\n(share)"


def test_a_phase_that_was_not_seen_is_not_drawn():
    node = made_recording()["timing"]
    for name in ("seconds", "model_seconds", "tokens"):
        node[name] = node[name].where(node["phase"] == "prefill", 0)
    figure = plots.time_by_kind(stats.time_by_kind(node))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["prefill"]
    assert len(figure.axes) == 2


def test_memory_draws_predicted_lines_and_measured_marks(statistics):
    data = statistics["memory"]
    ax = plots.memory(data).axes[0]
    assert_allclose([line.get_ydata() for line in ax.get_lines()], data["predicted"].T)
    assert_allclose([dots.get_offsets()[:, 1] for dots in points(ax)], data["measured"].T)
    assert [text.get_text() for text in ax.texts] == ["KV cache", "recurrent state", "convolution state"]
    assert ax.get_lines()[0].get_color().lower() == ORANGE
    assert ax.get_lines()[1].get_color().lower() == BLUE
    assert ax.get_xlabel() == "context (tokens)"


def test_residual_draws_both_parts_with_intervals(statistics):
    data = statistics["residual"]
    above, below = plots.residual(data).axes
    for ax, name in ((above, "ratio"), (below, "cosine")):
        assert_allclose([dots.get_offsets()[:, 1] for dots in points(ax)], data[name].transpose("part", "layer"))
        drawn = [segment[:, 1] for bar in lines(ax) for segment in bar.get_segments()]
        assert_allclose(drawn, data[f"{name}_interval"].transpose("part", "layer", "bound").values.reshape(-1, 2))
    mixers = points(above)[0]
    assert [to_hex(colour) for colour in mixers.get_facecolors()] == [BLUE, BLUE, BLUE, ORANGE] * 2


def test_layer_table_has_a_cell_for_every_number_and_its_range(statistics):
    table = statistics["layer_table"]
    ax = plots.layer_table(table).axes[0]
    numbers = sum(int(table[name].notnull().sum()) for name in table)
    assert len(ax.patches) == numbers + 8  # and a head for each layer
    words = [text.get_text() for text in ax.texts]
    low, high = float(table["half_life"].min()), float(table["half_life"].max())
    assert f"{low:.3g} to {high:.3g}" in words
    assert f"{float(table['half_life'][0]):.2g}" in words
    assert "half-life (tokens)" in [label.get_text() for label in ax.get_yticklabels()]
    assert [to_hex(patch.get_facecolor()) for patch in ax.patches[-8:]] == [BLUE, BLUE, BLUE, ORANGE] * 2


def test_layer_table_of_many_layers_has_no_numbers_in_its_cells():
    table = stats.layer_table(large())
    assert len(plots.layer_table(table).axes[0].texts) == len(table)


def test_layers_that_were_left_out_leave_no_gaps(recording):
    node = recording["residual"].isel(layer=[1, 3, 6])
    ax = plots.residual(stats.residual(node)).axes[1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "3", "6"]
    assert_allclose(ax.get_xticks(), [0, 1, 2])


def test_the_style_is_for_your_own_figures_too():
    before = dict(mpl.rcParams)
    with plots.style():
        assert mpl.rcParams["axes.spines.top"] is False
        assert mpl.rcParams["axes.labelsize"] == 9
    assert dict(mpl.rcParams) == before
