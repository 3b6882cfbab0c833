"""The vision service by itself: Triton's client, features on disk, towers that come and go."""
import pathlib
import signal
import tempfile
import threading
import unittest

import grpc
import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from stack import FREE_PORTS, ROOT, SCENES, TOWER_MODEL, Client, Service, run, until
from tritonclient.utils import InferenceServerException
from versions import cut_short, publish_copy

CLIP = ROOT / "tests/fixtures/clip-tower"


def picture(name="lion"):
    return (SCENES / f"{name}.png").read_bytes()


class VisionCase(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="llava-vision-")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def start(self, *arguments, model=("--model", TOWER_MODEL)):
        service = Service("llava-vision", [*model, *FREE_PORTS, *arguments], self.folder)
        self.addCleanup(service.stop)
        return service.wait_listening().wait_ready()

    def encoder(self, service, name=None):
        """A function from a picture to (bytes of its features, cached)."""
        client, models = Client(service.grpc, "llava.v1.VisionService"), Client(service.grpc, "llava.v1.ModelService")
        self.addCleanup(client.close), self.addCleanup(models.close)
        request = models.new("ListModelsRequest")
        request.name = name or ""
        digest = models.ListModels(request).models[0].vision_spec.tower_digest

        def encode(image):
            parts = list(client.Encode(client.new("EncodeRequest", image=image, spec={
                "tower_digest": digest, "image_mode": 2, "select_layer": -2, "select_feature": 1})))
            return b"".join(part.chunk for part in parts[1:]), parts[0].header.cached

        return encode


class TritonClientTest(VisionCase):
    """Everything through NVIDIA's own client library."""

    def setUp(self):
        super().setUp()
        self.service = self.start("--max-batch", "4", "--preferred-batch", "2,4")
        self.client = triton.InferenceServerClient(self.service.grpc)
        self.addCleanup(self.client.close)

    def images(self, *files):
        tensor = triton.InferInput("image", [len(files), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[file] for file in files], dtype=np.object_))
        return tensor

    def infer(self, tensor, **more):
        return self.client.infer("emoji-tower", [tensor], **more)

    def refused(self, hint, code="INVALID_ARGUMENT", call=None):
        with self.assertRaises(InferenceServerException) as caught:
            call()
        self.assertIn(code, caught.exception.status())
        self.assertIn(hint, caught.exception.message())

    def test_a_stranger_finds_its_way(self):
        self.assertTrue(self.client.is_server_live() and self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready("emoji-tower"))
        self.assertFalse(self.client.is_model_ready("gpt"))
        self.assertEqual(self.client.get_server_metadata().name, "llava-vision")
        index = self.client.get_model_repository_index().models
        self.assertEqual([(model.name, model.state) for model in index], [("emoji-tower", "READY")])
        metadata = self.client.get_model_metadata("emoji-tower")
        config = self.client.get_model_config("emoji-tower").config
        self.assertEqual([tensor.name for tensor in metadata.inputs], ["pixel_values", "image"])
        self.assertEqual([tensor.datatype for tensor in metadata.outputs], ["FP32", "BF16"])
        self.assertEqual(config.max_batch_size, 4)
        self.assertEqual(list(config.dynamic_batching.preferred_batch_size), [2, 4])
        self.assertTrue(all(tensor.optional for tensor in config.input))

        # Pictures and pixels, as the metadata say.
        result = self.infer(self.images(picture("lion"), picture("three_frogs")), request_id="a-1")
        features = result.as_numpy("features")
        width = metadata.outputs[0].shape[2]
        self.assertEqual((features.dtype, features.shape[0], features.shape[2]), (np.float32, 2, width))
        self.assertTrue(np.isfinite(features).all())
        self.assertEqual(result.get_response().id, "a-1")
        side = metadata.inputs[0].shape[3]
        pixels = triton.InferInput("pixel_values", [2, 3, side, side], "FP32")
        pixels.set_data_from_numpy(self.pixels(side, "lion", "three_frogs"))
        wanted = [triton.InferRequestedOutput("features_bf16"), triton.InferRequestedOutput("features")]
        of_pixels = self.infer(pixels, outputs=wanted)
        np.testing.assert_array_equal(of_pixels.as_numpy("features"), of_pixels.as_numpy("features_bf16").astype(np.float32))
        cosine = (features * of_pixels.as_numpy("features")).sum(-1) / np.linalg.norm(features, axis=-1) / np.linalg.norm(
            of_pixels.as_numpy("features"), axis=-1)
        self.assertGreater(cosine.min(), 0.999)

        # The status tells what happened to queue and cache.
        models = Client(self.service.grpc, "llava.v1.ModelService")
        self.addCleanup(models.close)
        status = models.GetModelStatus(models.new("GetModelStatusRequest")).versions[0]
        self.assertEqual((status.feature_cache.entries, status.feature_cache.hits, status.feature_cache.misses), (2, 0, 2))
        self.assertGreater(status.feature_cache.bytes, features.nbytes / 2)
        self.assertGreater(status.feature_cache.budget_bytes, status.feature_cache.bytes)
        self.assertFalse(status.feature_cache.HasField("disk"))
        self.assertEqual(status.queued, 0)

        # Our own protocol gives the same to the bit.
        own, cached = self.encoder(self.service)(picture("lion"))
        self.assertTrue(cached)
        self.assertEqual((np.frombuffer(own, "<u2").astype("<u4") << 16).tobytes(), features[0].tobytes())

        self.assertGreater(self.infer(self.images(picture()), parameters={"select_feature": "cls_patch"}).as_numpy("features").shape[1],
                           features.shape[1])
        # An overview and two tiles: of the canvases that keep all pixels the one that wastes least.
        tiles = self.infer(self.images(picture()), parameters={"image_mode": "anyres", "grid": f"{side}x{2 * side},{2 * side}x{2 * side}"})
        self.assertEqual(tiles.as_numpy("features").shape, (1, 3 * features.shape[1], width))
        statistics = self.client.get_inference_statistics("emoji-tower").model_stats[0]
        self.assertEqual(statistics.inference_stats.success.count, 7)
        self.assertEqual(statistics.inference_stats.cache_hit.count, 1)
        self.assertGreater(statistics.execution_count, 0)

    def pixels(self, side, *names):
        """What the service itself makes of square pictures: resized and normalised as CLIP wants it."""
        mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        rows = []
        for name in names:
            image = Image.open(SCENES / f"{name}.png").convert("RGB")
            self.assertEqual(image.width, image.height)
            values = np.asarray(image.resize((side, side), Image.BICUBIC), np.float32) / 255
            rows.append(((values - np.float32(mean)) / np.float32(deviation)).transpose(2, 0, 1))
        return np.ascontiguousarray(np.stack(rows), np.float32)

    def test_bad_input_says_where_and_why(self):
        good = picture()
        self.refused("image[1]: ", call=lambda: self.infer(self.images(good, b"GIF89a" + b"\0" * 40)))
        self.refused("image[0]: ", call=lambda: self.infer(self.images(good[:len(good) // 2], good)))
        self.refused("5 pictures", call=lambda: self.infer(self.images(*[good] * 5)))
        side = self.client.get_model_metadata("emoji-tower").inputs[0].shape[3]

        def pixels(values, datatype="FP32"):
            tensor = triton.InferInput("pixel_values", list(values.shape), datatype)
            tensor.set_data_from_numpy(values)
            return lambda: self.infer(tensor)

        values = self.pixels(side, "lion", "three_frogs")
        values[1, 2, 0, 5] = np.nan
        self.refused("pixel_values[1]: ", call=pixels(values))
        self.refused("shape", call=pixels(values[:, :, :-1]))
        self.refused("FP64", call=pixels(values.astype(np.float64), "FP64"))
        self.refused("no such input", call=lambda: self.infer(triton.InferInput("picture", [1, 1], "BYTES")))
        self.refused("select_layer", call=lambda: self.infer(self.images(good), parameters={"select_layer": 99}))
        self.refused("gpt", code="NOT_FOUND", call=lambda: self.client.infer("gpt", [self.images(good)]))
        self.assertEqual(self.infer(self.images(good)).as_numpy("features").shape[0], 1)

    def test_many_at_once(self):
        """Good and bad requests together: the bad ones harm nobody, all good ones give what they give alone."""
        names = ("lion", "three_frogs", "two_apples", "guitar_and_apple")
        alone = {name: self.infer(self.images(picture(name))).as_numpy("features") for name in names}
        failures = []

        def work(worker):
            client = triton.InferenceServerClient(self.service.grpc)
            for i in range(20):
                name = names[(worker + i) % len(names)]
                # Another file of the same picture each time: nothing comes from the cache.
                tensor = self.images(picture(name) + bytes([worker, i]))
                if i % 4 == 3:
                    tensor = self.images(b"\x89PNG\r\n\x1a\n" + bytes([worker, i]))
                try:
                    found = client.infer("emoji-tower", [tensor]).as_numpy("features")
                    if i % 4 == 3 or not np.array_equal(found, alone[name]):
                        failures.append((name, i))
                except InferenceServerException as error:
                    if i % 4 != 3 or "INVALID_ARGUMENT" not in error.status():
                        failures.append(str(error))
            client.close()

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])


class FeatureDiskTest(VisionCase):
    def test_features_survive_kill_9_and_are_never_wrong(self):
        images = [picture(name) + bytes([i]) for i in range(12) for name in ("lion", "two_apples", "three_frogs")]
        encode = self.encoder(self.start())
        truth = {image: encode(image)[0] for image in images}
        arguments = ("--feature-cache-dir", self.folder / "features", "--feature-cache-disk-bytes", "100M")
        found = 0
        for round in range(4):
            service = self.start(*arguments)
            encode = self.encoder(service)
            for image in images[: 9 * (round + 1)]:
                features, cached = encode(image)
                self.assertEqual(features, truth[image])
                found += cached
            service.stop(signal.SIGKILL)  # while the last ones are being written
        self.assertGreater(found, 0)
        # Whatever happens to the files: right or computed anew.
        # pathlib's "*" takes hidden names too: those of files whose writing was cut short.
        files = [file for file in sorted((self.folder / "features").glob("*.feature")) if file.name[0] != "."]
        self.assertGreater(len(files), 10)
        for i, file in enumerate(files):
            data = bytearray(file.read_bytes())
            if i % 3 == 0:
                data[(i * 37) % len(data)] ^= 1
            file.write_bytes(data[: len(data) - (i % 3 == 1)])
        service = self.start(*arguments)
        encode = self.encoder(service)
        for image in images:
            self.assertEqual(encode(image)[0], truth[image])
        metrics = service.metrics()
        self.assertGreater(metrics['llava_vision_feature_disk_errors_total{kind="damaged"}'], 0)
        self.assertGreater(metrics["llava_vision_feature_disk_hits_total"], 0)


class TowersTest(VisionCase):
    def test_towers_come_and_go_and_features_stay(self):
        root = self.folder / "models"
        tower = root / "emoji-tower"
        publish_copy(TOWER_MODEL / "1", tower, 1)
        service = self.start("--poll-interval", "100ms", model=("--repository", root))
        client = triton.InferenceServerClient(service.grpc)
        self.addCleanup(client.close)
        ready = lambda name, version="": client.is_model_ready(name, version)
        until(lambda: ready("emoji-tower"))
        encode = self.encoder(service, "emoji-tower")
        features, cached = encode(picture())
        self.assertFalse(cached)

        # Another tower beside it, by another name.
        run("llava-model", "import", CLIP, "--repository", root, "--name", "clip")
        name = next(path.name for path in root.iterdir() if path.name != "emoji-tower")
        until(lambda: ready(name))
        other, _ = self.encoder(service, name)(picture())
        self.assertNotEqual(other, features)
        self.assertEqual(encode(picture()), (features, True))
        shown = [series for series in service.metrics() if series.startswith("llava_vision_model_info")]
        self.assertEqual(len(shown), 2, shown)

        # The same tower as a new version: nothing is computed anew.
        publish_copy(TOWER_MODEL / "1", tower, 2)
        until(lambda: ready("emoji-tower", "2"))
        until(lambda: not ready("emoji-tower", "1"))
        self.assertEqual(encode(picture()), (features, True))
        self.assertGreater(service.metrics()['llava_model_repository_looks_total{trigger="event"}'], 0)

        # A broken version changes nothing, and says why.
        publish_copy(TOWER_MODEL / "1", tower, 3, cut_short)
        state = lambda version: next((model for model in client.get_model_repository_index().models
                                      if (model.name, model.version) == ("emoji-tower", version)), None)
        until(lambda: state("3") and state("3").state == "UNAVAILABLE" and state("3").reason)
        self.assertIn("model.safetensors", state("3").reason)
        self.assertEqual(encode(picture()), (features, True))

        # By hand, through Triton's client.
        client.unload_model("emoji-tower")
        self.assertFalse(ready("emoji-tower"))
        with self.assertRaises(grpc.RpcError) as caught:
            encode(picture())
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)
        self.assertTrue(ready(name))

    def test_every_request_is_answered_while_versions_change(self):
        root = self.folder / "models"
        publish_copy(TOWER_MODEL / "1", root / "emoji-tower", 1)
        service = self.start("--poll-interval", "50ms", model=("--repository", root))
        until(lambda: service.get("/readyz")[0] == 200)
        encode = self.encoder(service, "emoji-tower")
        truth, _ = encode(picture())
        end, failures, count = threading.Event(), [], [0]

        def work(worker):
            i = 0
            while not end.is_set():
                i += 1
                try:
                    if encode(picture() + bytes([worker]) + i.to_bytes(4, "little"))[0] != truth:
                        failures.append("another feature")
                except grpc.RpcError as error:
                    failures.append(error.details())
                count[0] += 1

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        client = triton.InferenceServerClient(service.grpc)
        for version in range(2, 6):
            publish_copy(TOWER_MODEL / "1", root / "emoji-tower", version)
            until(lambda: client.is_model_ready("emoji-tower", str(version)))
        until(lambda: count[0] > 10)
        end.set()
        for thread in threads:
            thread.join()
        client.close()
        self.assertEqual(failures, [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
