"""A picture of the monitor as SVG, made without a terminal: for the documentation and for bug reports."""

from __future__ import annotations

import asyncio

from hearthd.tui.app import HearthTop


async def draw(app: HearthTop, width: int, height: int, *, seconds: float = 0.0, press: tuple[str, ...] = ()) -> str:
    """Runs `app` for `seconds` on a screen of `width` × `height` cells that nobody sees. Returns the SVG."""
    async with app.run_test(size=(width, height)) as pilot:
        if seconds:
            await asyncio.sleep(seconds)
        if press:
            await pilot.press(*press)
        await pilot.pause()
        # The second turn is for lines whose widths depend on the layout that the first one made.
        app.take_picture()
        await pilot.pause()
        return app.export_screenshot(title=f"hearthtop {width}×{height}")
