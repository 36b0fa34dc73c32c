"""Replace the last strides of an encoder by atrous convolutions."""

import tf_keras as keras


def dilated(encoder: keras.Model, output_stride: int) -> keras.Model:
    """Limit the stride of an encoder's features to `output_stride` with atrous convolutions (arXiv:1606.00915).

    A layer that would exceed that stride gets stride 1; convolutions after it are dilated by the omitted factor, so
    that each weight sees the same positions as before and pretrained weights fit.

    Args:
        encoder: functional model of built-in layers with static sizes, whose output stride is a power of two.
        output_stride: stride of the coarsest feature.

    Returns:
        A new encoder with the same layer names, weight shapes and number of outputs.
    """
    height = encoder.input_shape[1]

    def copy(layer):
        settings = layer.get_config()
        if isinstance(layer, keras.layers.ZeroPadding2D) and height // layer.input_shape[1] >= output_stride:
            settings["padding"] = ((0, 0), (0, 0))  # the strided convolution after it gets "same" padding below
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            surplus = height // layer.output_shape[1] // layer.strides[0] // output_stride
            if surplus >= 1:
                settings.update(strides=(1, 1), padding="same")
                if max(layer.kernel_size) > 1:
                    settings["dilation_rate"] = (surplus, surplus)
        return type(layer).from_config(settings)

    return keras.models.clone_model(encoder, clone_function=copy)
