/** The options and the opening of disks that commands read: IMAGE or IMAGE@TAG. */
import { MountError, printable } from '../errors.js'
import type { Source, SourceImage, SourceOptions } from '../image/reading/source.js'
import { Interrupted } from '../interruption.js'
import { parseChoice } from './arguments.js'
import { complain } from './output.js'
import { type PassphraseSource, passphraseSource } from './passphrase.js'
import { snapshotChoiceOf } from './qemu-options.js'
import { configureRemote, type RemoteValues } from './remote-options.js'

export interface SourceValues extends RemoteValues {
  readonly format?: string | undefined
  /** Of commands that read two images. */
  readonly 'second-format'?: string | undefined
  readonly 'force-share'?: boolean | undefined
  readonly 'allow-path'?: string[] | undefined
  readonly 'ignore-cid'?: boolean | undefined
  readonly 'passphrase-file'?: string[] | undefined
}

/** Opens the disks of one command. `close` it when all disks are open: then it forgets passphrases. */
export class SourceOpener {
  private readonly passphrases: PassphraseSource
  private readonly warned = new Set<string>()

  /**
   * @param isRead whether the disk's bytes are read; if they are only located, no passphrase is asked for
   * @param signal ends asking for passphrases
   */
  constructor(
    private readonly values: SourceValues,
    private readonly isRead = true,
    signal: AbortSignal = new AbortController().signal,
  ) {
    configureRemote(values)
    this.passphrases = passphraseSource(values['passphrase-file'] ?? [], signal)
  }

  /** Opens IMAGE or IMAGE@TAG, and prints its warnings. Throws ImageError, MountError, UsageError. */
  async open(name: string): Promise<Source> {
    return this.opened(name, this.values.format)
  }

  /** Opens the snapshot of an image that `-l` names; without it IMAGE or IMAGE@TAG. Throws as `open` does. */
  async openChosen(name: string, snapshot: string | undefined): Promise<Source> {
    if (snapshot === undefined) return this.open(name)
    const image = await this.openImage(name)
    try {
      return image.disk(snapshotChoiceOf(snapshot, image), () => image.close())
    } catch (error) {
      image.close()
      throw error
    }
  }

  /** Does the same as `open` for the second image of a command, whose format is another option. */
  async openSecond(name: string, format = this.values['second-format']): Promise<Source> {
    return this.opened(name, format)
  }

  /** Opens an image, whose disks can then be opened by their tags. Throws ImageError, MountError, UsageError. */
  async openImage(path: string): Promise<SourceImage> {
    const { SourceImage } = await import('../image/reading/source.js')
    const options = await this.options(this.values.format)
    return this.warning(await this.trying(() => SourceImage.open(path, options)))
  }

  private async opened(name: string, format: string | undefined): Promise<Source> {
    const { openSource } = await import('../image/reading/source.js')
    const options = await this.options(format)
    return this.warning(await this.trying(() => openSource(name, options)))
  }

  close(): void {
    this.passphrases.close()
  }

  private async options(format: string | undefined): Promise<SourceOptions> {
    const { whenReleased } = await import('../fs/mounting/release.js')
    return {
      ...(format !== undefined && { format: await formatNamed(format) }),
      allowPaths: this.values['allow-path'] ?? [],
      ignoreCid: this.values['ignore-cid'] === true,
      takesLocks: this.values['force-share'] !== true,
      ask: this.isRead ? this.passphrases.ask : undefined,
      whenFree: open => whenReleased(open, say),
    }
  }

  private async trying<T>(open: () => Promise<T>): Promise<T> {
    try {
      return await open()
    } catch (error) {
      this.passphrases.close()
      if (error instanceof Interrupted) throw new MountError('interrupted')
      const { namingItsMount } = await import('../image/opening/mounted.js')
      throw namingItsMount(error, READ_ANYWAY)
    }
  }

  /** Prints each warning once, also if both disks of a command have it. */
  private warning<T extends { readonly warnings: readonly string[] }>(opened: T): T {
    for (const warning of opened.warnings) {
      if (!this.warned.has(warning)) say(warning)
      this.warned.add(warning)
    }
    return opened
  }
}

const say = (line: string) => complain(`vimgfs: ${printable(line)}\n`)

/** Returns the name of the format that `option` gives. QEMU calls VHD by its program. Throws UsageError. */
export async function formatNamed(name: string, option = '-f'): Promise<string> {
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  return name === 'vhd' ? 'vpc' : parseChoice(name, option, FORMAT_NAMES)
}

const READ_ANYWAY = 'end that, or read it as it is with -U: what is read may be torn'
