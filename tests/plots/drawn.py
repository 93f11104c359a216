"""What every figure must keep to, tried on one."""

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg


def checked(draw):
    """The figure, once nothing of it is cut off, settings stayed as they were, and pyplot knows nothing of it."""
    with mpl.rc_context({"font.size": 17.0, "text.parse_math": True}):
        before = dict(mpl.rcParams)
        figure = draw()
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert dict(mpl.rcParams) == before
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge == 255).all()  # what is cut off touches the edge
    assert plt.get_fignums() == []
    return figure


def legend(figure):
    """The words of its legend."""
    return [text.get_text() for text in figure.legends[0].get_texts()]
