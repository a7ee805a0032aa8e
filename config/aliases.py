"""Options by the names that other programs give them: a mistake is answered with the name here."""

import re

# What to write here, and the names elsewhere. Where a name stands twice, the command's options
# decide.
ELSEWHERE = {
    "--corpus": (
        "dataset data dataset_name data_dir data_path train_data train_file input input_file file "
        "text_file"
    ),
    "--tokenizer": "tokenizer_name encoding tokenizer_path",
    "--vocab_size": "vocab n_vocab vocabulary_size",
    "--val_fraction": (
        "val_split valid_split validation_split test_size val_ratio val_size valid_fraction"
    ),
    "--split=tuning": "tuning tune tuning_split dev dev_split holdout hold_out",
    "--block_size": (
        "seq_len seqlen seq_length sequence_length sequence_len max_seq_len max_seq_length "
        "context context_length context_size context_len context_window ctx ctx_len n_ctx "
        "max_length max_len n_positions max_position_embeddings window"
    ),
    "--n_layer": (
        "n_layers num_layers num_layer layers depth num_hidden_layers num_blocks n_blocks blocks"
    ),
    "--n_head": "n_heads num_heads num_head heads num_attention_heads nhead",
    "--n_embd": (
        "n_embed n_emb embd embed embed_dim emb_dim embedding_dim embedding_size hidden_size "
        "hidden_dim hidden d_model dim model_dim width n_hidden"
    ),
    "--dropout": "drop dropout_rate dropout_prob p_drop attn_pdrop resid_pdrop embd_pdrop",
    "--tied": "tie_weights weight_tying tie_word_embeddings tie_embeddings tied_weights",
    "--form": "architecture arch model_type",
    "--form, which says which positions, norms and activation": (
        "pos_emb pos_embedding position_embedding rope rotary norm_type layernorm rmsnorm act "
        "activation_function hidden_act"
    ),
    "--form=gpt2, which has biases, or nanogpt, which has none": "use_bias linear_bias",
    "--label_smoothing": "smoothing label_smoothing_factor ls",
    "--teacher": "teacher_model distill distillation",
    "--batch_size": (
        "bs batch batchsize train_batch_size global_batch_size total_batch_size n_batch "
        "mini_batch_size"
    ),
    "--micro_batch_size, the sequences of batch_size in one forward pass": (
        "gradient_accumulation_steps gradient_accumulation grad_accum grad_accum_steps "
        "accumulate_grad_batches accumulation_steps per_device_train_batch_size "
        "per_device_batch_size device_batch_size microbatch_size micro_batch"
    ),
    "--max_iters": (
        "steps max_steps num_steps n_steps train_steps training_steps total_steps max_train_steps "
        "iters num_iters n_iters max_iter iterations num_iterations max_iterations niter updates"
    ),
    "--max_iters, which counts steps; training says how many epochs they are": (
        "epochs epoch num_epochs n_epochs max_epochs num_train_epochs"
    ),
    "--learning_rate, and --muon_learning_rate for the matrices": (
        "lr max_lr peak_lr base_lr learning_rates"
    ),
    "--muon_learning_rate": "muon_lr matrix_lr",
    "--min_lr_ratio, the last learning rate as a share of the peak": (
        "min_lr final_lr end_lr min_learning_rate lr_min final_lr_frac"
    ),
    "--schedule": "lr_scheduler lr_schedule scheduler sched lr_scheduler_type lr_decay decay_lr",
    "--schedule=cosine, which decays over all of max_iters": "lr_decay_iters lr_decay_steps",
    "--warmup_iters": "warmup warmup_steps num_warmup_steps lr_warmup_steps warmup_ratio",
    "--decay_fraction": "warmdown warmdown_ratio cooldown cooldown_frac",
    "--weight_decay": "wd decay l2 weightdecay",
    "--beta1": "adam_beta1 betas adam_betas",
    "--beta2": "adam_beta2",
    "--grad_clip": (
        "clip clip_grad clip_norm grad_norm max_norm max_grad_norm gradient_clip_val "
        "gradient_clipping"
    ),
    "--optimizer": "opt optim optimiser",
    "--out_dir": (
        "out output output_dir outdir out_path save_dir save_path savedir run_dir run_name run "
        "name exp_name log_dir logdir checkpoint_dir ckpt_dir"
    ),
    "--init_from=resume": (
        "resume resume_from resume_from_checkpoint resume_training continue restart"
    ),
    "--init_from": (
        "init model from_pretrained pretrained pretrained_model model_name model_name_or_path "
        "model_path load load_from checkpoint ckpt ckpt_path restore finetune"
    ),
    "--seed": "random_seed manual_seed rng_seed random_state",
    "--device": "cuda gpu cpu no_cuda use_cpu use_gpu device_type",
    "--dtype": (
        "precision amp fp16 bf16 fp32 half mixed_precision torch_dtype use_amp bfloat16 float16 "
        "float32"
    ),
    "--compile": "torch_compile use_compile no_compile jit",
    "--eval_interval": (
        "eval_every eval_steps eval_freq eval_frequency val_every val_interval val_freq "
        "val_check_interval evaluation_interval"
    ),
    "--eval_tokens, the validation tokens of an evaluation": (
        "eval_iters eval_batches limit_val_batches max_eval_batches val_iters eval_samples "
        "val_tokens"
    ),
    "--log_interval": (
        "log_every log_steps logging_steps log_freq print_every print_freq log_every_n_steps"
    ),
    "--checkpoint_interval": (
        "save_every save_interval save_steps save_freq checkpoint_every ckpt_interval "
        "always_save_checkpoint save_strategy"
    ),
    "--watchers=page,wandb": (
        "wandb wandb_log use_wandb log_wandb wandb_project wandb_run_name wandb_entity"
    ),
    "--watchers": "report_to logger log_with tensorboard mlflow trackio",
    "--patience": "early_stopping early_stop early_stopping_patience",
    "torchrun --nproc_per_node=N train.py": (
        "gpus num_gpus n_gpus ngpus nproc nproc_per_node devices world_size num_devices backend ddp"
    ),
    "python evaluate.py RUN": "eval_only",
    "--prompt": "start text input context prefix",
    "--prompt_file": "file input_file",
    "--num_samples": "n num samples n_samples num_return_sequences batch_size",
    "--max_new_tokens": "max_tokens length num_tokens n_tokens tokens max_length max_len gen_len",
    "--temperature": "temp",
    "--top_k": "topk k",
    "--top_p": "topp p nucleus",
    "--text": "file input input_file text_file data corpus dataset",
    "--against": "compare other baseline versus vs",
    "--checkpoint": "ckpt which",
    "--html": "page report",
    "--unit": "units",
    "--out": "output output_file save save_path out_file png",
    "--x": "x_axis xaxis",
    "--overwrite": "force f yes y",
}


def name_here(name: str, options: set[str]) -> str:
    """Find the option that a name from elsewhere means; "" if it is not known.

    >>> name_here("wd", {"weight_decay", "batch_size"})
    '--weight_decay'
    """
    for advice, names in ELSEWHERE.items():
        option = re.match(r"--(\w+)", advice)
        is_here = option is None or option[1] in options
        if is_here and name in names.split():
            return advice
    return ""
