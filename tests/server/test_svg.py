import threading
from concurrent.futures import ThreadPoolExecutor

import matplotlib
from matplotlib.figure import Figure

from loragate.server.experiments.svg import drawn


@drawn
def three_bars(title: str) -> Figure:
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.bar([1, 2, 3], [1, 2, 3])
    axes.set_title(title)
    return figure


def test_a_figure_is_drawn_with_its_texts_as_text_and_always_alike() -> None:
    page = three_bars("of requests & answers")
    assert page.startswith("<svg")
    assert ">of requests &amp; answers</text>" in page
    assert page == three_bars("of requests & answers")


def test_threads_that_draw_change_no_setting_that_others_see() -> None:
    """matplotlib's settings are the whole process's."""
    before, seen, is_over = dict(matplotlib.rcParams), set[str | None](), threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            seen.add(matplotlib.rcParams["svg.hashsalt"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as threads:
        pages = list(threads.map(three_bars, ["units"] * 8))
    is_over.set()
    watcher.join()
    assert len(set(pages)) == 1
    assert seen == {before["svg.hashsalt"]}
    assert dict(matplotlib.rcParams) == before
