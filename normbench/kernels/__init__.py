"""Fast array functions for the layers.

They import Keras, TensorFlow and JAX, but nothing else from normbench. The public functions:

========================================  ========================================================
``arrays``                                flatten_spatial, as_tensor
``standardize``                           standardize, group_standardize, position_standardize,
                                          moments, batch_moments, pooled
``batch``                                 batch_standardize, apply_statistics
``batch_cpu``                             standardize_shards: a mini-batch in several shards
``affine``                                per_channel, batch_center
``conv``                                  conv2d, conv2d_shards, depthwise_conv2d
``filters``                               standardize_filters, scale_filters
``relu``                                  rectified
``compile``                               compile_shared, elementwise, on_cpu
========================================  ========================================================
"""
