/** The parts that a transport needs to serve an image. */
import type { ServedImage } from './served-image.js'
import { VERSION } from '../version.js'
import type { Logger } from '../log.js'
import { appearanceOf } from './nodes/appearance.js'
import type { MountOptions } from './mounting/options.js'
import type { PassthroughRules } from './nodes/passthrough.js'
import type { SessionParts, Transport } from './session.js'

/** @param socket the path of the socket for commands, if there is one */
export function sessionParts(
  image: ServedImage,
  options: MountOptions,
  mountpoint: string,
  transport: Transport,
  shared: Pick<
    SessionParts,
    | 'gate'
    | 'opens'
    | 'onChanged'
    | 'looks'
    | 'onLook'
    | 'tables'
    | 'onTables'
    | 'changeTree'
    | 'onOverrun'
  >,
  logger: Logger,
  socket: string | undefined,
): SessionParts {
  const { chain, world, threads, caches, stats, scratch } = image
  const { allowOther, allowRoot, defaultPermissions, fsname, growable, flags } = options
  const isShared = allowOther || allowRoot
  const started = Date.now()
  return {
    sharesBytes: image.sharesBytes,
    ...{ ...shared, world, mountpoint, threads, caches, stats, started, logger },
    scratch: scratch?.maker,
    appearance: appearanceOf(chain, options),
    onlyUids: allowRoot ? [0, process.getuid?.() ?? 0] : undefined,
    mountRequest: {
      mountpoint,
      fsname: fsname ?? chain.layers[0].path,
      isWritable: image.isWritable,
      flags,
      allowOther: isShared,
      // With allow_other the image's own permission bits say who may read it.
      defaultPermissions: defaultPermissions || isShared,
    },
    status: { ...statusOf(image, transport, mountpoint, started), socket: socket ?? null },
    isGrowable: growable,
    writesBack: options.writeback,
    passthrough: rulesOf(options, transport),
    backings: image.backings,
  }
}

function rulesOf(options: MountOptions, transport: Transport): PassthroughRules {
  const { passthrough, materializeBytes, scratch, partitions, manage, forceShare, writeback } =
    options
  const off: [boolean, string][] = [
    [passthrough === 'off', 'passthrough=off'],
    [transport !== 'direct', 'libfuse has no passthrough'],
    [scratch !== undefined, 'scratch'],
    [partitions, 'partitions'],
    [manage, 'manage'],
    [forceShare, 'force-share'],
    [writeback, 'writeback'],
  ]
  return {
    why: off.find(([is]) => is)?.[1],
    isForced: passthrough === 'on',
    copiedBytes: materializeBytes,
  }
}

/** Returns the fields of status.json that do not change. */
function statusOf(
  { chain, entries, threads, scratch, sharesBytes }: ServedImage,
  transport: Transport,
  mountpoint: string,
  started: number,
): Record<string, unknown> {
  return {
    version: VERSION,
    pid: process.pid,
    started: new Date(started).toISOString(),
    image: chain.layers[0].path,
    mountpoint,
    disk: entries[0]?.name,
    transport,
    threads: Math.max(1, sharesBytes ? threads - 1 : threads),
    scratch: scratch?.maker.path,
  }
}
