"""The record of a run while it goes: its log, the live table, sinks, and loggers of other libraries."""
