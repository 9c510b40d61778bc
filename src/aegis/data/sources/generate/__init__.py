"""Records written by a model: topics → research notes → questions → thinking → pairs."""
