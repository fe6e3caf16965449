"""The commands of the pages, in the order in which they can be run, with the further flags that make each small; and those that are not, with reasons."""

from __future__ import annotations

PHOTOS = "mine.py --corpus photos=./photos --near open_clip:ViT-L-14/openai --far hf:facebook/dinov2-large"
LAION = "mine.py --config configs/laion_aesthetics.yaml"
PUBLISHED = "--near miniature:clip --far miniature:dino --device cpu --num-threads 1"
"""In place of what recipes name: workers that need not import OpenCLIP and transformers, as those of PHOTOS do, are there much sooner."""
MLLM = "evaluate.py mllm --benchmark MMVP"
TABLE1 = "evaluate.py encoders --config configs/evaluate/table1.yaml --benchmark MMVP_VLM"
ASKED = "--base-url SERVER --api-key-env="
SMALL = "--device cpu --num-threads 1"
WIDE = "--near-quantile 0.5 --far-quantile 0.9"
"""Random weights find all pictures alike."""

INGEST = {
    "ingest.py imagenet --train ILSVRC2012_img_train.tar --class-names LOC_synset_mapping.txt --out s3://bucket/imagenet": "",
    "ingest.py imagenet --config configs/ingest/imagenet.yaml --out s3://bucket/imagenet": "--out s3://bucket/imagenet-again",
    "ingest.py imagenet --val ILSVRC2012_img_val.tar --devkit ILSVRC2012_devkit_t12.tar.gz --out s3://bucket/imagenet-val": "",
    # The download itself, from a server on this machine: tests/integration/test_ingest_laion.py.
    "ingest.py laion --config configs/ingest/laion_aesthetics.yaml --contact you@example.org --metadata s3://bucket/laion2B-en-aesthetic/*.parquet "
    "--out s3://bucket/laion-aesthetics": "--plan",
    "ingest.py laion --config configs/ingest/laion_aesthetics.yaml --contact you@example.org --out s3://bucket/laion-aesthetics": "--plan --out s3://bucket/laion-again",
}
MINE = {
    "mine.py": f"--corpus m=miniature:160 --near-above 0.85 --far-below 0.8 --select 40 --out runs/miniature {SMALL}",
    f"{PHOTOS} --out runs/photos --plan": f"{WIDE} {SMALL}",
    f"{PHOTOS} --out runs/photos": f"{WIDE} {SMALL}",
    f"{PHOTOS} --out ./runs/photos": f"{WIDE} {SMALL}",
    "mine.py --corpus photos=./photos --near hf:./my_clip --far hf:./my_dino --near-quantile 0.9999 --far-quantile 0.5 --out runs/mine": SMALL,
    # Ray's workers of this session know no folder of ours; the file itself: tests/integration/test_encoders_python.py.
    "mine.py --corpus photos=./photos --near open_clip:ViT-L-14/openai --far python:my_encoders:patches": f"--plan {SMALL}",
    "ingest.py score --store runs/laion/store --head sa_0_4_vit_l_14_linear.pth --encoder open_clip:ViT-L-14/openai": "",
    "mine.py --config configs/imagenet.yaml --corpus imagenet=s3://bucket/imagenet/shards --out s3://bucket/runs/imagenet": f"--near-above 0.1 --far-below 0.999999 {PUBLISHED}",
    "mine.py --config configs/imagenet.yaml --out s3://bucket/runs/imagenet": f"--corpus imagenet=s3://bucket/imagenet/shards --near-above 0.1 --far-below 0.999999 {PUBLISHED}",
    f"{LAION} --corpus laion=s3://bucket/laion-aesthetics/*.tar --store s3://bucket/store --out s3://bucket/runs/first --num-actors 8": f"--num-actors 1 {PUBLISHED}",
    f"{LAION} --store s3://bucket/store --out s3://bucket/runs/laion": PUBLISHED,
    f"{LAION} --corpus laion=s3://bucket/laion-aesthetics/shards --out s3://bucket/runs/laion": f"--plan {PUBLISHED}",
    "mine.py --config configs/remine.yaml": PUBLISHED,
    "mine.py --config configs/remine.yaml --store s3://bucket/store --runs s3://bucket/runs --num-actors 8": f"--num-actors 1 {PUBLISHED}",
}
PEOPLE_BEFORE = {
    "annotate.py import --workspace work --run runs/miniature": "",
    "annotate.py import --workspace work --run runs/photos": "",
    "annotate.py import --workspace work --run s3://bucket/runs/imagenet": "",
    "annotate.py users add --workspace work --name Ada --role admin": "",
}
SERVE = {
    "annotate.py serve --workspace work": "",
    "annotate.py serve --workspace work --public-url https://lab.org/annotate": "",
}
PEOPLE_AFTER = {
    "annotate.py agreement --workspace work": "",
    "annotate.py export --workspace work --form mmvp --out my_mmvp": "",
    "annotate.py export --workspace work --form mmvp_vlm --kind statements --per-pattern 15 --out my_mmvp_vlm": "",
    "annotate.py study new --workspace work --name first --benchmark my_mmvp --participants 10": "",
    "annotate.py study new --workspace work --name mmvp --benchmark MMVP --participants 4": "",
}
STUDIES = {
    "annotate.py study report --workspace work --name first --out runs/study": "",
    "annotate.py study report --workspace work --name mmvp --out runs/people": "",
}
EVALUATE = {
    f"{TABLE1} --out runs/table1": f"--encoders miniature:clip {SMALL}",
    f"{TABLE1} --labelled-images s3://bucket/imagenet-val/*.tar": f"--encoders open_clip:encoders/clip --classes labels --templates openai_7 {SMALL}",
    f"{TABLE1} --labelled-images s3://bucket/imagenet-val/shards/*.tar --out runs/table1": f"--encoders miniature:clip --out runs/table1-labelled --max-labelled-images 2 --classes labels --templates openai_7 {SMALL}",
    "evaluate.py encoders --benchmark MMVP_VLM --encoders open_clip:ViT-L-14/openai --encoders hf:/models/siglip --out runs/encoders": SMALL,
    "evaluate.py rule --benchmark MMVP --near open_clip:ViT-L-14/openai --far hf:facebook/dinov2-large": SMALL,
    "evaluate.py rule --benchmark MMVP --near open_clip:ViT-L-14/openai --far hf:facebook/dinov2-large --out runs/rule": SMALL,
    f"{MLLM} --key corrected --model vllm:llava-1.5-13b --base-url http://gpu:8000/v1 --out runs/llava": "",
    f"{MLLM} --key original --model gpt-4v --out runs/gpt": ASKED,
    f"{MLLM} --key original --model gemini-pro --out runs/gemini": ASKED,
    f"{MLLM} --model gpt-4v --labels (1) --out runs/numbers": ASKED,
    f"{MLLM} --model gpt-4v --swap --out runs/swapped": ASKED,
    f"{MLLM} --model ours:final --base-url http://127.0.0.1:8000/v1 --out runs/served": "",
    f"{MLLM} --model hf:models/llava-1.5-7b-hf --device cuda --swap --blind --out runs/llava-7b": "--max-tokens 4",
    f"{MLLM} --key original --compat official --temperature 0.2 --model hf:llava-hf/llava-1.5-13b-hf --template vicuna_v1 --device cuda --out runs/llava15": "--max-tokens 4",
    f"{MLLM} --key original --compat official --temperature 0.2 --model hf:Salesforce/instructblip-vicuna-13b --device cuda --out runs/instructblip": "--max-tokens 4",
    f"{MLLM} --model hf:s3://bucket/runs/finetune/model --out runs/mmvp": "--max-tokens 4 --device cpu",
    "evaluate.py patterns --benchmark MMVP --model openai:MODEL --find --num-votes 5 --out runs/patterns": ASKED,
    "evaluate.py patterns --benchmark MMVP --model openai:MODEL --num-votes 5 --out runs/patterns": f"{ASKED} --out runs/patterns-voted",
    "evaluate.py patterns --benchmark MMVP --by rule --out runs/patterns": "--out runs/patterns-by-rule",
    "evaluate.py pope --questions POPE/output/coco --images val2014 --model vllm:M --base-url http://gpu:8000/v1 --out runs/pope": "",
    "evaluate.py llava-bench --questions qa90_questions.jsonl --references qa90_gpt4_answer.jsonl --contexts caps_boxes_coco2014_val_80.jsonl --images val2014 --model vllm:M "
    "--base-url http://gpu:8000/v1 --judge openai:MODEL-WITH-DATE --out runs/llava-bench": "--judge-base-url https://api.openai.com/v1 --judge-api-key-env=",
    "evaluate.py report --results runs/table1 --results runs/llava --out runs/report": "",
    "evaluate.py report --results runs/llava --results runs/llava-7b --results runs/table1 --patterns runs/patterns/patterns.yaml --out runs/report": "",
    "evaluate.py report --results runs/llava --people runs/study/responses.csv --out runs/report": "",
    "evaluate.py report --results runs/llava15 --results runs/instructblip --results runs/gpt --results runs/gemini --people runs/people/responses.csv --out runs/figure4": "",
    "evaluate.py report --results runs/table1 --results runs/llava15 --results runs/instructblip --patterns runs/patterns/patterns.yaml --out runs/figure6": "",
}
PROBE = {
    "probe.py": "--items items.jsonl --device cpu",
    "probe.py --items items.jsonl --models albef:ALBEF.pth,google-bert/bert-base-uncased --models open_clip:ViT-L-14/openai": "--device cpu",
    "probe.py --config configs/probe/study.yaml --items s3://bucket/coco50/items.jsonl": "--models miniature:clip --models hf:encoders/dinov2 --device cpu",
}
TRAIN = {
    "train_mof.py convert --source blip_laion_cc_sbu_558k.json --template plain --out s3://bucket/captions": "",
    "train_mof.py convert --source chat.json --template plain --out s3://bucket/cc595k": "",
    "train_mof.py convert --source llava_v1_5_mix665k.json --out s3://bucket/mix665k": "",
    "train_mof.py convert --source llava_instruct_158k.json --out s3://bucket/llava158k": "",
    "train_mof.py index --archives coco=s3://bucket/train2017.tar --archives gqa=s3://bucket/gqa.tar --out s3://bucket/images.index.parquet": "",
    "train_mof.py plan --config configs/mof/table3_llava15_interleaved_224.yaml": "",
    "train_mof.py plan --config configs/mof/table3_llava15_interleaved_224.yaml --gpu-counts 8 --gpu-gib 80": "",
    "train_mof.py plan --config configs/mof/table2_additive_0750.yaml --gpu-counts 8 --gpu-gib 80": "",
}

TRAINED = "tests/integration/test_mof_training_ray.py::test_a_job_that_is_killed_goes_on_in_an_object_store"
SERVED = "tests/integration/test_mof_serving.py::test_the_job_serves_and_stops_in_order"
SWEPT = "tests/integration/test_mof_training_ray.py::test_a_sweep_trains_and_scores_a_recipe"
STAGE = "train_mof.py train --config configs/mof/stages/llava15_{}.yaml --recipe configs/mof/table3_llava15_interleaved_224.yaml --num-workers 8 --num-micro-batches 4"
SWEEP = "--mmvp mmvp.yaml --pope pope.yaml --llava-bench bench.yaml --out s3://bucket/runs"
BOTH = "--align align.yaml --finetune finetune.yaml"

ELSEWHERE = {
    "miniature.py --out runs/miniature-paper": (
        "tests/integration/test_mof_experiment.py::test_the_page_tells_every_chapter_and_its_links_lead_to_reports",
        "trains for half an hour; there at --scale smoke",
    ),
    "miniature_mof.py --out runs/miniature-mof": (
        "tests/integration/test_mof_experiment.py::test_results_are_whole",
        "trains for a quarter of an hour; there with a few steps",
    ),
    "mmvp_ray.miniature.train --role clip --out DIR": (
        "tests/integration/test_miniature_training.py::test_caption_contrast_equals_the_double_loop_with_soft_targets",
        "trains for hours; there its losses, and what it gave is in the package",
    ),
    "mmvp_ray.miniature.train --role dino --out DIR": (
        "tests/integration/test_miniature_training.py::test_view_contrast_equals_the_double_loop",
        "trains for hours; there its losses, and what it gave is in the package",
    ),
    f"{STAGE.format('align')} --rows s3://bucket/captions --images s3://bucket/captions_images --out s3://bucket/runs/align": (
        TRAINED,
        "Vicuna-13B on eight GPUs; there the same stage in an object store with small backbones",
    ),
    f"{STAGE.format('finetune')} --start s3://bucket/runs/align --rows s3://bucket/mix665k --images s3://bucket/images.index.parquet --out s3://bucket/runs/finetune": (
        SWEPT,
        "Vicuna-13B on eight GPUs; there stage 2 begins with the adapters of stage 1, with small backbones",
    ),
    f"train_mof.py sweep --recipes configs/mof/table2_*.yaml {BOTH} {SWEEP}/table2": (
        SWEPT,
        "seven trainings of a 13B model",
    ),
    f"train_mof.py sweep --recipes configs/mof/table3_llava_*.yaml {BOTH} {SWEEP}/table3": (
        SWEPT,
        "three trainings of a 13B model",
    ),
    f"train_mof.py sweep --recipes configs/mof/table3_llava15_*.yaml --recipes configs/mof/other_ssl_*.yaml {BOTH.replace('.yaml', '15.yaml')} {SWEEP}/table3_15": (
        SWEPT,
        "four trainings of a 13B model",
    ),
    "serve_mof.py --model runs/finetune/model": (
        SERVED,
        "serves until it is stopped; there on Ray Serve with a small model",
    ),
    "serve_mof.py --model runs/mof/final": (SERVED, "the same"),
    "serve_mof.py --model s3://bucket/runs/finetune/model": (SERVED, "the same"),
}
"""Not run for the pages: the test that runs the same code, and why."""
