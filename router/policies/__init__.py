"""How an engine is chosen: one file a policy, `lbgr/` the one that this project is about; `table` lists them all."""
