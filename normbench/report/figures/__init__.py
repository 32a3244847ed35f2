"""The figures of a report: each module draws one kind and returns a :class:`style.Drawing`."""
