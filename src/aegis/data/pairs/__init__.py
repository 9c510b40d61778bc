"""Make pairs of a chosen and a rejected response from several samples of one prompt."""
