from trim_graph.evaluation.metrics import Interval
from trim_graph.evaluation.plots import (
    ArmPoint,
    Positions,
    draw_accuracy,
    draw_places,
    draw_reliability,
    draw_steps,
    save_plot,
    svg_of,
)
from trim_graph.evaluation.scorer_metrics import discrimination

SMALL = ArmPoint("small alone", 0.0, 0.4, None, Interval(0.35, 0.45))
LARGE = ArmPoint("large alone", 1.0, 0.99)
POINTS = [
    ArmPoint("threshold", 0.4, 0.97, Interval(0.35, 0.5), Interval(0.95, 0.99)),
    ArmPoint("threshold", 0.1, 0.7),
    ArmPoint("random", 0.2, 0.5),
]


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def legend_of(figure):
    """Returns the texts of the legend: among the points, or beside the axes."""
    (legend,) = filter(None, [figure.axes[0].get_legend(), *figure.legends])
    return [text.get_text() for text in legend.get_texts()]


def test_accuracy_lies_beside_the_line_of_random_query_routing():
    figure = draw_accuracy(POINTS, SMALL, LARGE)
    axes = figure.axes[0]
    assert lines_of(figure)["whole questions at random"].get_xydata().tolist() == [[0, 0.4], [1, 0.99]]
    drawn = {box.get_label(): box for box in axes.containers}
    data, _, (across, upright) = drawn["threshold"].lines
    assert data.get_xydata().tolist() == [[0.1, 0.7], [0.4, 0.97]]  # joined in order of share
    # A bar of no length where no interval is known.
    assert [path.tolist() for path in across.get_segments()] == [
        [[0.1, 0.7]] * 2,
        [[0.35, 0.97], [0.5, 0.97]],
    ]
    assert [path[:, 1].tolist() for path in upright.get_segments()] == [[0.7, 0.7], [0.95, 0.99]]
    assert drawn["small alone"].lines[2][0].get_segments()[0][:, 1].tolist() == [0.35, 0.45]
    assert legend_of(figure) == [
        "whole questions at random",
        "small alone",
        "large alone",
        "threshold",
        "random",
    ]


def test_other_methods_lie_beside_as_grey_points_that_are_not_joined():
    beside = [ArmPoint("cascade", share, 0.5) for share in (0.2, 0.6)]
    figure = draw_accuracy(POINTS, SMALL, LARGE, beside=beside)
    data = {box.get_label(): box for box in figure.axes[0].containers}["cascade"].lines[0]
    assert data.get_xydata().tolist() == [[0.2, 0.5], [0.6, 0.5]]
    assert (data.get_linestyle(), data.get_color()) == (
        "None",
        lines_of(figure)["whole questions at random"].get_color(),
    )
    assert len(figure.legends) == 1  # below the axes, where it hides none of them
    assert legend_of(figure)[3] == "cascade"


def test_a_legend_of_many_families_hides_no_point():
    many = [ArmPoint(f"family {number}", number / 10, 0.5) for number in range(9)]
    figure = draw_accuracy(many, SMALL, LARGE)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend_of(figure)) == 3 + len(many)
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_a_reliability_curve_shows_the_area():
    pairs = [(0.05, False)] * 8 + [(0.05, True)] * 2 + [(0.95, True)] * 10
    figure = draw_reliability({"mine": discrimination(pairs), "nothing": discrimination([])})
    (drawn,) = figure.axes[0].containers
    assert drawn.lines[0].get_xydata().round(6).tolist() == [[0.05, 0.2], [0.95, 1.0]]
    assert legend_of(figure) == ["calibrated", "mine, AUC 0.917"]


def test_places_and_steps_leave_out_what_is_not_known():
    arms = {"a": Positions([0.5, None, 0.25], [None] * 9 + [1.0])}
    assert lines_of(draw_steps(arms))["a"].get_xydata().tolist() == [[1, 0.5], [3, 0.25]]
    assert lines_of(draw_places(arms))["a"].get_xydata().tolist() == [[0.95, 1]]


def test_any_name_can_be_drawn_and_is_not_mathematics(tmp_path):
    names = (
        "_hidden",
        "$x_1$",
        "\\frac{",
        "中文",
        "half \ud800",
        "</svg><script>alert(1)</script>",
        "n" * 500,
    )
    figure = draw_accuracy([POINTS[0]._replace(family=name) for name in names], SMALL, LARGE)
    reported = legend_of(figure)
    assert reported[3:7] == [" _hidden", "$x_1$", "\\frac{", "中文"]
    assert all(len(name) <= 28 for name in reported)
    assert b"<script" not in svg_of(figure)
    files = save_plot(figure, tmp_path / "all.of it")
    assert [file.name for file in files] == ["all.of it.png", "all.of it.svg"]


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in "ab":
        save_plot(draw_accuracy(POINTS, SMALL, LARGE), tmp_path / name)
    for ending in ("png", "svg"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_on_a_dark_ground_lines_are_light():
    light, dark = (draw_accuracy(POINTS, SMALL, LARGE, dark=ground) for ground in (False, True))
    for figure, bright in ((light, False), (dark, True)):
        for label in (figure.axes[0].xaxis.label, figure.axes[0].get_legend().get_texts()[0]):
            assert (int(label.get_color()[1:3], 16) > 128) is bright
