/** `vimgfs mount`: in front, or as a server in the background that reports once the mount answers. */
import fs from 'node:fs'
import path from 'node:path'
import { exitCodeOf, isExpected, oneLine, printable, UsageError } from '../errors.js'
import type { CatalogEntry } from '../image/catalog.js'
import type { ServeRequest, Server } from '../fs/server.js'
import type { AskPassphrase } from '../image/opening/encryption.js'
import type { LogLevel, LogTarget } from '../log.js'
import { schemeOf } from '../sources/address.js'
import { parse, parseChoice, parseCount, parseSize } from './arguments.js'
import { OPTIONS } from './help/mount.js'
import { humanSize } from './human.js'
import { launch, type StartReport, REPORT_FD_VARIABLE } from './launch.js'
import { complain } from './output.js'
import { configureRemote } from './remote-options.js'
import { closeDebugger, ENDING_SIGNALS, obeyLogSignals } from './signals.js'
import { withSpelled } from './spelled-options.js'
import { noteHelper } from './utab.js'

interface Caller {
  /** Returns the caller's code for an exit code of an error that ends the process at once. */
  readonly exitCode: (code: number) => number
  /** Whether umount(8) is not to learn of the mount. */
  readonly isUnnoted: boolean
}

const USER: Caller = { exitCode: code => code, isUnnoted: false }

export async function run(args: string[], caller = USER): Promise<number> {
  const { values, positionals } = parsed(args)
  const reportFd = process.env[REPORT_FD_VARIABLE]
  try {
    if (!hasFolder()) leaveFolder(await requestOf(args))
    if (values.foreground) return await serveInFront(args)
    if (reportFd !== undefined) return await serveInBackground(args, Number(reportFd))
    // This process reports wrong usage, before it starts a server.
    await requestOf(args)
    const code = await launch(
      args,
      positionals[1] as string,
      values.quiet === true,
      values['passphrase-file'] ?? [],
    )
    if (code === 0 && !caller.isUnnoted) noteHelper(positionals[1] as string)
    return code
  } catch (error) {
    if (!isExpected(error) || error instanceof UsageError) throw error
    complain(`vimgfs: ${oneLine(error)}\n`)
    return leave(caller.exitCode(exitCodeOf(error)))
  }
}

function parsed(args: string[]) {
  const { values, positionals } = parse(args, OPTIONS, 'mount', ['IMAGE', 'MOUNTPOINT'])
  return { values: withSpelled(values, OPTIONS), positionals }
}

/**
 * Ends the process at once after an error: it does not wait for reads, for a key that is being derived, or for a thread
 * that hangs.
 */
async function leave(code: number): Promise<number> {
  try {
    const { exitNow } = await import('../io/libc.js')
    exitNow(code)
  } catch {
    // The C library cannot be called. Perhaps that is the error.
  }
  return code
}

/** Reports whether the current folder still exists. */
function hasFolder(): boolean {
  try {
    process.cwd()
    return true
  } catch {
    return false
  }
}

/** Changes to `/`, because threads cannot start in a deleted folder. Throws if a name is relative. */
function leaveFolder({ request, logFile, passphraseFiles = [] }: Settings): void {
  const { image, mountpoint, open, options } = request
  const secrets = passphraseFiles.filter(name => name !== '-')
  // For a relative name this throws, since there is no current folder.
  for (const name of [
    schemeOf(image) === undefined ? image : '/',
    mountpoint,
    logFile ?? '/',
    ...(open.allowPaths ?? []).filter(name => schemeOf(name) === undefined),
    ...secrets,
    options.scratch?.folder ?? '/',
    options.scratch?.file ?? '/',
  ]) {
    path.resolve(name)
  }
  process.chdir('/')
}

interface Settings {
  readonly request: Omit<ServeRequest, 'askPassphrase' | 'interruption' | 'say'>
  readonly passphraseFiles: readonly string[] | undefined
  readonly level: LogLevel
  readonly logFile: string | undefined
  readonly quiet: boolean
}

/** Throws UsageError. */
async function requestOf(args: string[]): Promise<Settings> {
  const { parseMountOptions } = await import('../fs/mounting/options.js')
  const { checkFlags } = await import('../fs/mounting/mount-flags.js')
  const { DEFAULT_THREADS, MAX_THREADS } = await import('../fs/limits.js')
  const { MAX_CHAIN_DEPTH } = await import('../formats/limits.js')
  const { values, positionals } = parsed(args)
  const [image, mountpoint] = positionals as [string, string]
  configureRemote(values)
  const options = parseMountOptions(values.option ?? [], Object.keys(OPTIONS))
  checkFlags(options.flags)
  const { threads, format, transport } = values
  const metadata = values['metadata-cache']
  const depth = values['max-chain']
  // Most of the code, which the process that only starts a server does without.
  const formats = format === undefined ? [] : (await import('../formats/registry.js')).FORMAT_NAMES
  return {
    request: {
      image,
      mountpoint,
      options,
      open: {
        ...(format !== undefined && { format: parseChoice(format, '--format', formats) }),
        ...(depth !== undefined && {
          maxDepth: parseCount(depth, '--max-chain', 1, MAX_CHAIN_DEPTH.highest),
        }),
        allowPaths: values['allow-path'] ?? [],
        ignoreCid: values['ignore-cid'] === true,
        dropsChangeTracking: values['drop-change-tracking'] === true,
        force: values.force === true,
      },
      threads:
        threads === undefined ? DEFAULT_THREADS : parseCount(threads, '--threads', 1, MAX_THREADS),
      transport:
        transport === undefined
          ? undefined
          : parseChoice(transport, '--transport', OPTIONS.transport.choices),
      metadataBytes: metadata === undefined ? undefined : parseSize(metadata, '--metadata-cache'),
    },
    passphraseFiles: values['passphrase-file'],
    level: parseChoice(values['log-level'] ?? 'info', '--log-level', OPTIONS['log-level'].choices),
    logFile: values['log-file'],
    quiet: values.quiet === true,
  }
}

async function serveInFront(args: string[]): Promise<number> {
  const { request, level, logFile, quiet, passphraseFiles } = await requestOf(args)
  const { foregroundLog } = await import('../log.js')
  const { DescriptorSink } = await import('../log-sinks.js')
  const target = await foregroundLog(level, logFile)
  const interruption = new AbortController()
  const { passphraseSource } = await import('./passphrase.js')
  const passphrases = passphraseSource(passphraseFiles ?? [], interruption.signal)
  const server = await serve(request, passphrases.ask, interruption, target, false, line =>
    complain(`vimgfs: ${printable(line)}\n`),
  ).finally(() => passphrases.close())
  // The mount must not wait for a reader that has stopped.
  const [stdout, stderr] = [new DescriptorSink(1), new DescriptorSink(2)]
  for (const warning of [...target.warnings, ...server.warnings]) {
    stderr.say(`vimgfs: ${printable(warning)}\n`)
  }
  if (!quiet) stdout.say(`${hints(request, server, undefined).join('\n')}\n`)
  return end(server)
}

/**
 * Waits until the last request has been served, and ends the process at once: all is in the image. Ending threads one by
 * one could only fail, and the program that unmounts waits for this process.
 */
async function end(server: Server): Promise<number> {
  const { exitNow } = await import('../io/libc.js')
  if (!(await server.finished)) process.exitCode = 1
  const code = Number(process.exitCode ?? 0)
  // Node writes a profile only at an ordinary end.
  if (!process.execArgv.some(arg => arg.startsWith('--cpu-prof'))) exitNow(code)
  return code
}

async function serveInBackground(args: string[], reportFd: number): Promise<number> {
  delete process.env[REPORT_FD_VARIABLE]
  const tell = (content: StartReport) => {
    try {
      fs.writeSync(reportFd, `${JSON.stringify(content)}\n`)
    } catch {
      // The process that waits has been killed. The mount goes on without it.
    }
  }
  tell({ runs: true })
  const { PassphraseRelay } = await import('./passphrase-relay.js')
  const relay = new PassphraseRelay(reportFd + 1, ask => tell({ ask }))
  const report = (content: StartReport) => {
    relay.close()
    tell(content)
    fs.closeSync(reportFd)
  }
  try {
    const { startSession } = await import('../io/libc.js')
    const { request, level, logFile } = await requestOf(args)
    const { backgroundLog } = await import('../log.js')
    const target = backgroundLog(level, logFile)
    const server = await serve(request, relay.ask, new AbortController(), target, true, wait =>
      tell({ wait }),
    )
    process.chdir('/')
    // Not earlier: autofs shows a mount in progress only to the process group that it has started.
    startSession()
    const warnings = [...target.warnings, ...server.warnings]
    for (const warning of warnings) target.logger.warn(warning)
    report({ lines: hints(request, server, target.place), warnings })
    return await end(server)
  } catch (error) {
    if (!isExpected(error)) throw error
    report({ error: oneLine(error), code: exitCodeOf(error) })
    return leave(exitCodeOf(error))
  }
}

/** Mounts, and unmounts on the signals that end programs. Logs a bug before it ends the process. */
async function serve(
  asked: Settings['request'],
  askPassphrase: AskPassphrase,
  interruption: AbortController,
  target: LogTarget,
  isInBackground: boolean,
  say: (line: string) => void,
): Promise<Server> {
  const { logger } = target
  obeyLogSignals(target)
  const { startServer } = await import('../fs/server.js')
  let stop: ((reason: string) => void) | undefined
  let early: string | undefined
  const end = (signal: string) => {
    early ??= signal
    interruption.abort()
    stop?.(signal)
  }
  const listen = () => {
    for (const signal of ENDING_SIGNALS) process.on(signal, end)
    process.on('SIGHUP', isInBackground ? () => target.reopen() : end)
  }
  // While this thread waits for a network it takes no events: then signals end the process, which has changed nothing.
  const { image, open } = asked
  const isRemote = [image, ...(open.allowPaths ?? [])].some(name => schemeOf(name) !== undefined)
  if (!isRemote) listen()
  const request = {
    ...{ ...asked, askPassphrase, say, interruption: interruption.signal },
    ...(isRemote && { onOpened: listen }),
  }
  let hasFailed = false
  const die = (error: unknown) => {
    logger.fatal(
      { stack: error instanceof Error ? error.stack : String(error) },
      'vimgfs has failed',
    )
    process.exitCode = 1
    // Stop once only: if stopping fails, this would repeat for ever.
    if (!hasFailed) stop?.('failure')
    hasFailed = true
  }
  const server = await startServer(request, logger)
  process.on('uncaughtException', die)
  process.on('unhandledRejection', die)
  stop = reason => server.stop(reason)
  closeDebugger()
  if (early !== undefined) stop(early)
  return server
}

/** Returns the lines that are printed after mounting: the mount, its users, and how to unmount it. */
function hints(
  request: Settings['request'],
  server: Server,
  logPlace: string | undefined,
): string[] {
  const count = (kind: CatalogEntry['kind']) => server.entries.filter(e => e.kind === kind).length
  const [disk] = server.entries
  const format = `${server.format}${server.isGuessed ? ' (guessed)' : ''}`
  const extras = [
    plural(count('snapshot'), 'snapshot'),
    plural(count('vmstate'), 'VM state'),
    plural(count('layer'), 'backing layer'),
  ].filter(text => text !== '')
  const { allowOther, allowRoot } = request.options
  const isRoot = process.getuid?.() === 0
  const who =
    allowOther || isRoot
      ? ''
      : allowRoot
        ? 'You and root can use it.'
        : 'Only you can use it: root, for example for a loop mount, needs -o allow_root or -o allow_other.'
  return [
    `${disk?.name} (${humanSize(disk?.sizeBytes ?? 0)})${extras.length > 0 ? ` with ${extras.join(', ')}` : ''} in ${server.mountpoint}, ${format}, ${accessOf(server)}`,
    ...(who === '' ? [] : [who]),
    `Unmount it with: vimgfs umount ${server.mountpoint}${logPlace === undefined ? '' : ` (log: ${logPlace})`}`,
  ].map(printable)
}

function accessOf({ access, keptIn, entries }: Server): string {
  if (access !== 'scratch') return access
  const kept = keptIn === undefined ? '' : `, but for ${entries[0]?.name}: ${keptIn} keeps that`
  return `scratch copies: what is written is gone after unmounting${kept}`
}

const plural = (count: number, name: string): string =>
  count === 0 ? '' : `${count} ${name}${count > 1 ? 's' : ''}`
