"""What can go wrong here: a setting nobody can use, or a host this plugin does not know.

LeafcutterError
+-- SettingError   a LEAFCUTTER_... variable has a value out of range, or its port is taken
+-- HostError      the vLLM at hand is not one the adapter fits
"""


class LeafcutterError(Exception):
    """Raised from the plugin, it stops the engine: the engine never runs half patched."""


class SettingError(LeafcutterError):
    """Names the key, its value and what was expected."""


class HostError(LeafcutterError):
    """Says in plain words what differs from the supported hosts."""
