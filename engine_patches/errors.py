"""What can go wrong here: a setting that cannot be used, or a vLLM (the host) that this plugin does not know.

LeafcutterError
+-- SettingError   a LEAFCUTTER_... variable has a value out of range, or its port is taken
+-- HostError      the vLLM at hand is not one the adapter fits
"""


class LeafcutterError(Exception):
    """An error of the plugin. vLLM does not catch it, so it stops the engine: the engine never runs half patched."""


class SettingError(LeafcutterError):
    """A setting cannot be used. The message names the variable, its value and what was expected."""


class HostError(LeafcutterError):
    """This vLLM is not a supported one. The message says in plain words what differs."""
