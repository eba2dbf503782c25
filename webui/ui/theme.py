"""Ink and stone: the colours, sizes and system fonts of all pages, light and dark, as a Gradio theme."""

import gradio as gr

INK = gr.themes.Color(
    name="ink",
    c50="#eef5f5",
    c100="#d8e8e8",
    c200="#b3d1d2",
    c300="#8abcc0",
    c400="#6ba9af",
    c500="#38808a",
    c600="#1f5f6b",
    c700="#184d57",
    c800="#143f48",
    c900="#10333a",
    c950="#0a2228",
)
STONE = gr.themes.Color(
    name="stone",
    c50="#fbfaf7",
    c100="#f7f5f1",
    c200="#e5e1d9",
    c300="#d2ccc1",
    c400="#a59d90",
    c500="#7f776b",
    c600="#645d53",
    c700="#3b3833",
    c800="#2b2926",
    c900="#211f1d",
    c950="#191817",
)
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

FLAT = {
    "body_background_fill": "*neutral_100",
    "body_background_fill_dark": "*neutral_950",
    "body_text_color": "#26231f",
    "body_text_color_dark": "#e9e5dd",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "#a8a194",
    "background_fill_primary": "#fffefb",
    "background_fill_primary_dark": "*neutral_900",
    "background_fill_secondary": "*neutral_50",
    "background_fill_secondary_dark": "*neutral_800",
    "border_color_primary": "*neutral_200",
    "border_color_primary_dark": "*neutral_700",
    "color_accent_soft": "*primary_100",
    "color_accent_soft_dark": "*primary_900",
    "link_text_color": "*primary_600",
    "link_text_color_dark": "*primary_300",
}
BLOCKS = {
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_border_width_dark": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_title_text_color": "*body_text_color_subdued",
    "block_title_text_color_dark": "*body_text_color_subdued",
    "block_title_text_weight": "500",
    "block_title_text_size": "14px",
    "block_info_text_size": "14px",
    "layout_gap": "18px",
    "form_gap_width": "0px",
    "panel_background_fill": "transparent",
    "panel_background_fill_dark": "transparent",
}
INPUTS = {
    "input_background_fill": "*background_fill_primary",
    "input_background_fill_dark": "*neutral_900",
    "input_background_fill_focus_dark": "*neutral_900",
    "input_background_fill_focus": "*background_fill_primary",
    "input_border_color": "*neutral_300",
    "input_border_color_dark": "*neutral_700",
    "input_border_color_focus": "*primary_500",
    "input_border_color_focus_dark": "*primary_400",
    "input_border_width": "1px",
    "input_border_width_dark": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "input_text_size": "15px",
    "input_padding": "10px 12px",
    "input_placeholder_color": "#776f64",
    "input_placeholder_color_dark": "#8f887c",
    "slider_color": "*primary_500",
    "slider_color_dark": "*primary_400",
}
BUTTONS = {
    "button_large_text_size": "16px",
    "button_large_text_weight": "600",
    "button_medium_text_size": "14px",
    "button_small_text_size": "14px",
    "button_small_text_weight": "500",
    "button_small_padding": "6px 12px",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_dark": "*primary_400",
    "button_primary_background_fill_hover_dark": "*primary_300",
    "button_primary_text_color": "#ffffff",
    "button_primary_text_color_dark": "#0a1d21",
    "button_secondary_background_fill": "transparent",
    "button_secondary_background_fill_dark": "transparent",
    "button_secondary_background_fill_hover": "*neutral_200",
    "button_secondary_background_fill_hover_dark": "*neutral_800",
    "button_secondary_border_color": "*neutral_300",
    "button_secondary_border_color_dark": "*neutral_700",
    "button_border_width": "1px",
    "button_transition": "background-color 120ms ease",
}


def make() -> gr.themes.Base:
    """No web font, no gradient, no shadow: warm greys, and one deep ink for what one acts on."""
    theme = gr.themes.Base(
        primary_hue=INK,
        secondary_hue=INK,
        neutral_hue=STONE,
        radius_size=gr.themes.sizes.radius_md,
        font=[*SANS, "sans-serif"],
        font_mono=list(MONO),
    )
    return theme.set(**FLAT, **BLOCKS, **INPUTS, **BUTTONS)
