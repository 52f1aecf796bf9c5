"""The open Emu Edit: one diffusion model that edits images by instruction over sixteen tasks.

Nothing heavy is imported here, so that `emu-edit --help` is instant; take what you need from its
module, e.g. `from emu_edit.editing.editor import Editor`.
"""
