"""How the web page looks: sizes, colours, fonts and style sheet; no layout, no event."""

from typing import Any

from gradio.themes import Default  # pyright: ignore[reportMissingImports]

# in pixels: with it everything but a long history fits a window of 1280x900
PICTURE_HEIGHT = 340

PIXELATED = "pixelated"  # class of the panel that shows a small picture

# fonts of the visitor's computer: gradio's own themes load theirs from Google
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "Consolas", "monospace")

CSS = (
    f".gradio-container {{ --picture-height: {PICTURE_HEIGHT}px; }}"
    + """
html { scrollbar-gutter: stable; }
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
.main.app { padding-left: clamp(12px, 2.5vw, 32px); padding-right: clamp(12px, 2.5vw, 32px); }
.dark { --color-accent: var(--primary-500); color-scheme: dark; }
#title h2 { margin: 0; }
#title p, #summary p, #history-title p, #legend p { margin: 0; }
#title p, #start, #legend p { color: var(--body-text-color-subdued); }
#start { border: 1px solid var(--border-color-primary); padding: 24px 28px !important; }
#start li { margin: 8px 0; }
#task input { text-overflow: ellipsis; }
#predicted { padding: 8px 14px 10px; background: var(--block-background-fill); }
#predicted:not(:has(p)) { display: none; }
#predicted p { margin: 0; }
#upload .wrap { padding-top: 28px; }

/* pictures: as large as their frame, with the label above instead of on them */
#before .image-container > button, #after .image-container > button { width: 100%; }
#before .image-frame, #after .image-frame { width: 100%; height: auto; }
#before label[data-testid=block-label], #after label[data-testid=block-label] {
  position: static; float: none; border: 0; box-shadow: none;
}
#before label span, #after label span { display: none; }
#before img, #after img {
  width: 100%; height: auto; max-height: var(--picture-height); object-fit: contain;
}
#before.fullscreen img, #after.fullscreen img { height: calc(100vh - 40px); max-height: none; }
#difference img { width: 100%; height: 100%; object-fit: contain; }
.pixelated img { image-rendering: pixelated; }
#compare .icon { color: white; }
/* the icon is an arrow back, but it only ends a zoom */
#compare button[aria-label=Undo]:disabled { display: none; }

/* while an edit runs the picture stays in sight; what was refused hides nothing */
#panel .wrap.full {
  background: color-mix(in srgb, var(--block-background-fill) 75%, transparent);
}
#panel .wrap.full .progress-text {
  background: var(--block-background-fill); border-top-left-radius: var(--radius-md);
}
#panel .wrap.full .eta-bar { display: none; }
[data-testid=status-tracker]:is(.hidden, :has(> .error)) { display: none; }
.toast-title.error { font-size: 0 !important; }
.toast-title.error::before { content: "That did not work"; font-size: var(--text-lg); }
.toast-title.error .toast-count { font-size: var(--text-lg); }

/* history: as many in a row as fit, the words below the picture, whole rows, no scrolling inside */
#history { overflow: visible !important; border: 0; background: none; }
#history .grid-wrap {
  height: auto; min-height: 0; max-height: none; overflow: visible; padding: 2px;
}
#history .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)); height: auto; gap: 10px;
}
#history .thumbnail-item {
  display: flex; flex-direction: column; aspect-ratio: auto; height: 100%; text-align: left;
}
#history .thumbnail-item img { height: auto; max-height: 160px; border-radius: 0; }
#history .thumbnail-item.selected { outline: 2px solid var(--color-accent); }
#history .caption-label {
  position: static; max-width: 100%; width: 100%; border: 0; border-radius: 0; padding: 4px 6px;
  background: none; font-size: 0.75rem; line-height: 1.3; white-space: normal; overflow: hidden;
  overflow-wrap: anywhere;
}
"""
)


def page_theme() -> Any:
    """Return gradio's plain theme with the visitor's fonts and a green that white text shows on."""
    theme = Default(font=FONTS, font_mono=MONO, primary_hue="teal", neutral_hue="slate")
    return theme.set(
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        loader_color="*primary_700",
    )
