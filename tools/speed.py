"""Time, memory and roofline of backbones, and of whole train steps, measured in turns."""
import os
import sys

import _checkout  # noqa: F401
from suite.cli import Options, guard, need_writable, parser


def main():
    args = parser(__doc__, '''examples:
  tools/speed.py convnext_tiny --modes eager compile channels-last+bfloat16 --csv speed.csv
  tools/speed.py convnext_tiny --against timm/convnext_tiny --protocol maskrcnn_coco --mini
Ratio: the time of the other one over ours; above 1, ours is faster. Ratios of one run say more
than seconds. Of peak: share of a matrix product's speed; attainable: of the roofline's, see
suite/roofline.py. Memory: what one pass adds at most to what is there before it.''')
    args.add_argument('backbone', metavar='NAME', help='e.g. swin_tiny')
    args.add_argument('--options', nargs='+', action=Options, default={}, metavar='KEY=VALUE')
    args.add_argument('--against', metavar='NAME', help='e.g. timm/swin_tiny_patch4_window7_224')
    args.add_argument('--against-options', nargs='+', action=Options, default={},
                      metavar='KEY=VALUE')
    args.add_argument('--modes', nargs='+', default=['eager'], metavar='MODE',
                      help='eager, compile, channels-last, bfloat16, or several joined by +')
    args.add_argument('--size', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'))
    args.add_argument('--batch', type=int, default=1, metavar='B')
    args.add_argument('--protocol', metavar='CONFIG',
                      help='also a train step of it, on a batch of its own data and size')
    args.add_argument('--mini', action='store_true', help='the protocol on small synthetic data')
    args.add_argument('--data-root', metavar='DIR', help="folder of the protocol's data")
    args.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='default: cpu')
    args.add_argument('--repeats', type=int, metavar='N', help='default: 10, on cuda 50')
    args.add_argument('--threads', type=int, default=1, metavar='N', help='of the CPU (default: 1)')
    args.add_argument('--csv', metavar='FILE', help='write the results, replacing the file')
    args.add_argument('--record', metavar='FILE', help='write a record for leaderboards (.json)')
    args = args.parse_args()

    # Of what a pass lets go that was there before it, torch would say that it is not counted.
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
    import torch
    torch.set_num_threads(max(1, args.threads))
    from suite.latency import System, need, of_backbones, timed
    from suite.modes import Mode
    from suite.speed_report import Report, table
    repeats = dict(cpu=10, cuda=50)[args.device] if args.repeats is None else args.repeats
    modes = list(dict.fromkeys(map(Mode.parse, args.modes)))
    need(args.device, modes, batch=args.batch, repeats=repeats, threads=args.threads)
    need_writable(args.csv, '--csv')
    need_writable(args.record, '--record')
    systems = [System(args.backbone, args.options)]
    if args.against:
        systems.append(System(args.against, args.against_options))

    def tasks():
        yield from of_backbones(systems, modes, (args.batch, 3, *args.size), args.device, repeats)
        if args.protocol:
            from suite.train_step import steps
            cases = list(steps(systems, modes, args.protocol, args.device, args.mini,
                               args.data_root))
            yield timed('train step', cases, args.device, repeats)

    report = Report(args.device, repeats)
    print(report.head(), flush=True)
    for task in tasks():
        report.tasks.append(task)
        print(*table(task, len(modes)), sep='\n', flush=True)
    if args.csv:
        report.write_csv(args.csv)
    if args.record:
        report.write_record(args.record)


if __name__ == '__main__':
    sys.exit(guard(main))
