/** The base of writers: what a format need not do, and the refusal to grow. */
import { ImageError } from '../errors.js'
import type { WritableDriver } from './writable.js'

type Defaults =
  | 'mark'
  | 'lookEverywhere'
  | 'refresh'
  | 'checkGrowth'
  | 'grow'
  | 'keepSize'
  | 'close'

export abstract class BaseWriter implements Pick<WritableDriver, Defaults> {
  /**
   * @param format the name of the format for users
   * @param path the path of the image, for messages
   */
  protected constructor(
    private readonly format: string,
    private readonly path: string,
  ) {}

  /** Does nothing: the format has no dirty bitmaps. */
  mark(_offset: number, _length: number): void {}

  /** Does nothing: the format does not search for free space, but appends, or has a fixed place for everything. */
  lookEverywhere(): void {}

  /** Does nothing: the disk never grows, and its tables stay where they are. */
  refresh(): void {}

  checkGrowth(_sizeBytes: number): void {
    throw new ImageError('REFUSED', `${this.format} images cannot grow`, { path: this.path })
  }

  grow(sizeBytes: number): void {
    this.checkGrowth(sizeBytes)
  }

  /** Does nothing: no header says the size, or it never changes. */
  keepSize(): void {}

  /** Does nothing: no header says whether the image is being written. */
  close(): readonly string[] {
    return []
  }
}
