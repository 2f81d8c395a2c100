"""How an engine is chosen. Each policy is one file; `lbgr/`, the policy that this project is about, is a folder. `base`
is the contract of all policies, and `table` lists them.
"""
