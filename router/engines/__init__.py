"""The engines as the gateway's host sees them: how they are started, found, and kept under watch.

Start at `up`, which starts engines and the gateway in front of them (`leafcutter up`): `launch` runs an engine as a
process, and `demo_model` makes the small model for machines without a GPU. For engines that run already start at
`discovery`, which keeps their health and facts up to date with what `probe` reads over HTTP. `doctor` explains what is
wrong with them (`leafcutter doctor`).
"""
