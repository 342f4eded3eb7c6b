"""Meeting points with other libraries; each module imports its library, so import them only where it is present."""
