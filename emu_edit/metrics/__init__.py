"""Functions from pictures, texts and masks to numbers; they know no network and no data set."""
